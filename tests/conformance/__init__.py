"""The conformance matrix: transformations x program shapes x kinds of operations.

`python -m pytest tests/conformance -m ""` runs it (in parallel with `-n auto`) and prints it. The rows of its
tables are the programs in `programs` or the operations in `kinds.py`, the columns the transformations in
`transformations.py`. A cell says whether it passed, or that JAX itself cannot do it; totals follow. Without
`-m ""` only one of two tiers runs.

`matrix.py` defines the checks of a cell, `test_matrix.py` the cells.
"""
