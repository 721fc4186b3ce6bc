"""Weights in DFP16, written and read with Orbax: python examples/dfp16_weights.py [DIRECTORY]

Kernels take half of float32's bytes: int16 mantissas, and an exponent for each block. They are rounded as an
operation in DFP16 rounds them when it reads them, so the model's results in DFP16 keep every bit.
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

import dfpjax
from dfpjax.training import load_weights, save_weights
from dfpjax.training.models import MODELS


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(folder: Path) -> None:
    model = MODELS["digits_resnet"](classes=10)
    images = np.random.default_rng(0).random((8, 8, 8, 1), np.float32)
    variables = model.init(jax.random.key(0), images, train=False)
    for weight_format in ("float32", "dfp16"):
        save_weights(folder / weight_format, variables, weight_format)
        print(f"{weight_format}: {size(folder / weight_format) / 1e3:.0f} kB")
    loaded = load_weights(folder / "dfp16", variables)

    apply = dfpjax.mixed_precision(model.apply, dfpjax.Policy(default=dfpjax.OpConfig(force=True)))
    before, after = (apply(v, images, train=False) for v in (variables, loaded))
    print(f"largest difference of the results: {np.abs(before - after).max():.1e}")
    exact = model.apply(variables, images, train=False)
    print(f"largest difference from float32: {np.abs(exact - after).max():.1e}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            main(Path(directory))
