"""Freeze a model's weights and export it with them as a program: serving_call.py serves it in another
process.

    python examples/serving_export.py DIRECTORY

writes the program, the weights at half their size, and an example of its input and output. Needs
`pip install ".[train,export,safetensors]"`.
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

import dfpjax
from dfpjax import serving


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(512)(x))
        return nn.Dense(64)(x)


def main(directory: Path) -> None:
    model, x = Classifier(), jax.random.normal(jax.random.key(0), (4, 256))
    variables = model.init(jax.random.key(1), x)
    apply = dfpjax.mixed_precision(model.apply)
    frozen = dfpjax.freeze(variables, fun=model.apply, args=(x,))
    exported = dfpjax.export(apply, frozen, x)

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "program.bin").write_bytes(exported.serialize())
    serving.save_safetensors(directory / "weights.safetensors", frozen)
    np.savez(directory / "example.npz", x=x, y=apply(frozen, x))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    print(f"weights: {(directory / 'weights.safetensors').stat().st_size} bytes, {whole} in float32")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
