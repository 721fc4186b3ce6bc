"""A partitioned training step for other processes, which print what came of it.

python partitioned.py write FILE     exports it
python partitioned.py read FILE      calls what is exported
python partitioned.py jit            compiles it, perhaps from the persistent compilation cache
"""

import sys

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dfpjax

FORCED = dfpjax.Policy(default=dfpjax.OpConfig(force=True))
NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
SHAPES = (8, 16, 16, 16), (3, 3, 16, 32), (3, 3, 32, 32)  # large enough for pooling in native code


@dfpjax.mixed_precision(policy=FORCED)
def network(x, w, v):
    x = jax.nn.relu(lax.conv_general_dilated(x, w, (1, 1), "SAME", **NHWC))
    x = lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return lax.conv_general_dilated(x, v, (1, 1), "SAME", **NHWC)


def step(x, w, v):
    return jax.value_and_grad(lambda w, v: (network(x, w, v) ** 2).mean(), (0, 1))(w, v)


def arguments():
    return [
        np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, shape in enumerate(SHAPES)
    ]


def placed():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    return [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip(arguments(), (P("data"), P(), P()), strict=True)
    ]


def show(compiled, args):
    program = compiled.as_text()
    print("native", program.count('custom_call_target="dfpjax_'), "gathers", program.count(" all-gather("))
    print("loss", np.asarray(compiled(*args)[0]).item().hex())


def main(command: str, path: str | None = None) -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    args = placed()
    if command == "write":
        exported = jax.export.export(jax.jit(step), disabled_checks=dfpjax.export_checks())(*args)
        with open(path, "wb") as file:
            file.write(exported.serialize())
    elif command == "read":
        with open(path, "rb") as file:
            exported = jax.export.deserialize(file.read())
        show(jax.jit(exported.call).lower(*args).compile(), args)
    else:
        show(jax.jit(step).lower(*args).compile(), args)


if __name__ == "__main__":
    import jax.export

    main(*sys.argv[1:])
