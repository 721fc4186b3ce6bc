"""Serve what serving_export.py has written: this process knows neither the model nor Flax.

    python examples/serving_call.py DIRECTORY

The import of dfpjax registers the kernels that the program calls. Needs `pip install
".[export,safetensors]"`.
"""

import sys
from pathlib import Path

import jax.export
import numpy as np

import dfpjax
from dfpjax import serving


def main(directory: Path) -> None:
    program = jax.export.deserialize(bytearray((directory / "program.bin").read_bytes()))
    weights = dfpjax.freeze(serving.load_safetensors(directory / "weights.safetensors"))  # packs matrices
    example = np.load(directory / "example.npz")
    y = program.call(weights, example["x"])
    print(f"equal to the exporting process, bit for bit: {np.array_equal(y, example['y'])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
