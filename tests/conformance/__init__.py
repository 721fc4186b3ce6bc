"""The conformance matrix: transformations x program shapes x kinds of operations.

`python -m pytest tests/conformance -m ""` runs it (in parallel with `-n auto`) and prints it: which of the
programs in `programs`, around which of the operations in `kinds.py`, passed under each of the transformations
in `transformations.py`, what JAX itself cannot do, and the totals. Without `-m ""` one of two tiers runs.

What a cell checks stands in `matrix.py`, and which cells there are in `test_matrix.py`.
"""
