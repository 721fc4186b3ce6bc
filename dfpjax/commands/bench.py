"""`dfpjax bench`: a minute's comparison with JAX's own float32 and bfloat16 on this machine."""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import dfpjax
from dfpjax.commands._errors import CommandError
from dfpjax.commands.info import cpu_model
from dfpjax.launch import relaunch

Array = jax.Array
CONTENDERS = ("float32", "bfloat16", "dfpjax")
_WORTH = 1.1
"""From this ratio on the verdict calls one of two faster: less is within the noise of a shared machine."""


def add_to(commands: Any) -> None:
    """Adds the command to argparse's subparsers."""
    parser = commands.add_parser(
        "bench",
        help="a minute's comparison with JAX's own float32 and bfloat16 on this machine",
        description="Times single operations and a training step of a small residual network, by JAX in"
        " float32, by JAX in bfloat16 and by dfpjax, in turns; the best call of each counts.",
    )
    parser.add_argument("--seconds", type=float, default=60, help="about how long it takes (60)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny arrays: shows that it runs, and says nothing of speed"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints a table and a verdict."""
    if not (math.isfinite(arguments.seconds) and arguments.seconds > 0):
        raise CommandError(f"--seconds is {arguments.seconds}; it must be positive")
    relaunch()  # with the memory settings that are fastest, for all contenders
    print(f"{cpu_model()}, {dfpjax.runtime_info().isa}, JAX {jax.__version__}\n", flush=True)
    quick = arguments.quick
    tasks = {**operations(quick), "training step": training_step(quick)}
    print(f"{'ms':32}{''.join(f'{name:>12}' for name in CONTENDERS)}  : float32 : bfloat16")
    ratios: dict[str, tuple[float, float]] = {}
    for name, programs in tasks.items():
        share = 0.4 if name == "training step" else 0.6 / (len(tasks) - 1)
        seconds = best_seconds(programs, arguments.seconds * share / 2)
        ours = seconds["dfpjax"]
        ratios[name] = seconds["float32"] / ours, seconds["bfloat16"] / ours
        times = "".join(f"{1000 * seconds[contender]:12.2f}" for contender in CONTENDERS)
        print(f"{name:32}{times}{ratios[name][0]:11.2f}{ratios[name][1]:11.2f}", flush=True)
    print("\nThese arrays are too small for a verdict." if quick else f"\n{verdict(ratios)}")


def verdict(ratios: dict[str, tuple[float, float]]) -> str:
    """What the figures say.

    Arguments:
        ratios: for each task, how many times as fast as float32 and as bfloat16 dfpjax is.
    """
    *single, step = ratios
    mean = statistics.geometric_mean(ratios[name][0] for name in single)
    against_float32, against_bfloat16 = ratios[step]
    said = (
        f"On this machine dfpjax takes the training step {against_float32:.2f} times as fast as JAX in"
        f" float32 and {against_bfloat16:.2f} times as fast as JAX in bfloat16; single operations {mean:.2f}"
        " times as fast as float32, in the geometric mean."
    )
    if against_float32 < _WORTH:
        return f"{said} Stay with float32: dfpjax gains nothing here."
    if against_bfloat16 < 1 / _WORTH:
        return f"{said} Use bfloat16 where 8 bits of precision suffice, and dfpjax where they do not."
    return f"{said} Use dfpjax."


def best_seconds(programs: dict[str, Callable[[], Any]], budget: float) -> dict[str, float]:
    """Seconds of the best call of each program. They take turns, for a budget of seconds in all."""
    for run_once in programs.values():
        run_once()  # compiles
    best = dict.fromkeys(programs, math.inf)
    end = time.perf_counter() + budget
    turns = 0
    while turns < 3 or time.perf_counter() < end:
        for name, run_once in programs.items():
            start = time.perf_counter()
            run_once()
            best[name] = min(best[name], time.perf_counter() - start)
        turns += 1
    return best


def operations(quick: bool) -> dict[str, dict[str, Callable[[], Any]]]:
    """Single operations, from float32 operands to float32 results: by name, each contender's program."""
    batch, scale = (1, 4) if quick else (8, 1)
    size = 56 // scale
    tasks = {
        f"conv 3x3, 64 to 64, {size}x{size}": (_conv, (batch, size, size, 64), (3, 3, 64, 64)),
        f"conv 1x1, 256 to 64, {size}x{size}": (_conv, (batch, size, size, 256), (1, 1, 256, 64)),
        f"conv 3x3, 256 to 256, {size // 4}x{size // 4}": (
            _conv, (batch, size // 4, size // 4, 256), (3, 3, 256, 256),
        ),
        f"matmul {1024 // scale}x1024x1024": (jnp.matmul, (1024 // scale, 1024), (1024, 1024)),
    }  # fmt: skip
    return {
        name: _contenders(fun, [normal(index, *shape) for index, shape in enumerate(shapes)], force=True)
        for name, (fun, *shapes) in tasks.items()
    }


def training_step(quick: bool) -> dict[str, Callable[[], Any]]:
    """Loss and gradients of a residual network of six convolutions with batch normalization."""
    batch, size, width, classes = (2, 16, 32, 10) if quick else (16, 56, 64, 100)
    kernels = [(3, 3, 3, width), *[(3, 3, width, width)] * 4, (1, 1, width, 4 * width), (4 * width, classes)]
    params = [normal(i, *k) / math.sqrt(math.prod(k[:-1])) for i, k in enumerate(kernels)]
    x = normal(99, batch, size, size, 3)
    labels = jnp.asarray(np.arange(batch) % classes)

    def loss(params: Sequence[Array], x: Array, labels: Array) -> Array:
        first, *inner, last, dense = params
        y = _normalized(_conv(x, first))
        for one, two in zip(inner[::2], inner[1::2], strict=True):
            y = y + _normalized(_conv(_normalized(_conv(y, one)), two))
        y = jnp.mean(_normalized(_conv(y, last)), axis=(1, 2))
        logits = (y @ dense.astype(y.dtype)).astype(jnp.float32)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))

    return _contenders(jax.value_and_grad(loss), [params, x, labels], force=False)


def normal(seed: int, *shape: int) -> Array:
    """Normally distributed numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def _conv(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _normalized(x: Array) -> Array:
    mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
    return jax.nn.relu((x - mean) * lax.rsqrt(var + 1e-5))


def _contenders(fun: Callable, arguments: list[Any], *, force: bool) -> dict[str, Callable[[], Any]]:
    policy = dfpjax.Policy(default=dfpjax.OpConfig(force=force))
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, arguments)
    plain, ours = jax.jit(fun), jax.jit(dfpjax.mixed_precision(fun, policy))
    return {
        "float32": lambda: jax.block_until_ready(plain(*arguments)),
        "bfloat16": lambda: jax.block_until_ready(plain(*rounded)),
        "dfpjax": lambda: jax.block_until_ready(ours(*arguments)),
    }
