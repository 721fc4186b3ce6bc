"""Trains a model in float32 or in DFP16.

For example `python train.py --config configs/digits.py --config.precision=float32 --config.seed=0,1,2`.
With `--workdir=DIR` the same command resumes a run that was stopped or killed. `dfpjax-train` is the same
program, for where there is no checkout.
"""

from dfpjax.commands.train import main

if __name__ == "__main__":
    main()
