"""How data-parallel training scales: measured on one machine, predicted for many.

    python -m benchmarks.scaling measure --out docs/results/scaling   # takes minutes; writes the .json
    python -m benchmarks.scaling page --figures docs/results/scaling.json --out docs/scaling.md

`measure` starts 1, 2 and 4 processes on this machine, which take training steps and exchange gradients over
the loopback interface. `page` fits a model to what was measured, predicts steps of many machines, and writes
the page. Edit the copy of a .json, or measure on your own machines, for a page of your own.
"""
