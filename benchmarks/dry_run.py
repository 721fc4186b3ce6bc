"""Take optimisation steps of the paper's networks at their real size, in float32 and in DFP16.

    python -m benchmarks.dry_run --out docs/results/dry_run

ResNet-50, GoogLeNet, VGG-16 and AlexNet at 224×224 pixels take 20 steps of SGD on synthetic images, from the
same initial state, on the same batches and with the same units dropped. They do so in float32; in DFP16 with
the default policy, which leaves small operations in float32; and in float32 with each initial parameter moved
by one unit in the last place, up or down. The last run shows how far rounding alone drives two float32 runs
apart. Prints a Markdown table; --out writes OUT.json after every network, and the loss curves, OUT.png. Takes
some twenty minutes on four cores.
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax

import dfpjax
from benchmarks.common import figures
from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, cpu_model
from benchmarks.common.records import write_record
from configs import default
from dfpjax.training import TrainConfig
from dfpjax.training.data import load_dataset
from dfpjax.training.models import MODELS
from dfpjax.training.precision import POLICIES, with_precision
from dfpjax.training.state import TrainState, train_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Learning rates at which the loss of a few repeated images falls steadily.
RATES = {"resnet50": 0.005, "googlenet": 0.01, "vgg16": 0.0005, "alexnet": 0.001}
BATCHES = 2  # used in turn
VARIANTS = {
    "float32": ("float32", False),
    "dfp16": ("dfp16", False),
    "float32, one ulp": ("float32", True),
}
"""The precision of each, and whether its initial parameters are perturbed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A network's runs."""

    model: str
    batch: int
    learning_rate: float
    coverage: float
    """Share of the MACs of a training step that are in DFP16."""

    losses: dict[str, list[float]]
    """The training loss before each step, by variant."""

    seconds: dict[str, float]
    """The median step; the machine may have been shared."""

    def differences(self, variant: str) -> np.ndarray:
        """Relative difference of the loss from float32's, for each step."""
        base = np.array(self.losses["float32"])
        return np.abs(np.array(self.losses[variant]) - base) / np.abs(base)


def images(batch: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first training batches of the synthetic ImageNet, without augmentation."""
    values = default.get_config().to_dict() | {
        "dataset": "fake_imagenet",
        "train_split": f"train[:{batch * BATCHES}]",
        "test_split": f"validation[:{batch}]",
        "image_size": size,
        "min_crop_area": 1.0,
    }
    dataset = load_dataset(TrainConfig.from_dict(values))
    batches = dataset.train_batches(batch, seed=0)
    try:
        return [next(batches) for _ in range(BATCHES)]
    finally:
        batches.close()


def one_ulp(tree: dict, key: jax.Array) -> dict:
    """Every parameter changed to the next float32 above or below, at random."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))

    def changed(leaf: jax.Array, key: jax.Array) -> jax.Array:
        up = jax.random.bernoulli(key, shape=leaf.shape)
        return jnp.nextafter(leaf, jnp.where(up, jnp.inf, -jnp.inf))

    return jax.tree.unflatten(structure, map(changed, leaves, keys))


def start(model, rate: float, shape: tuple[int, ...], perturbed: bool) -> TrainState:
    """The initial state, the same in each call except for the perturbation."""
    variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
    params = variables["params"]
    return TrainState.create(
        apply_fn=model.apply,
        tx=optax.sgd(rate, momentum=0.9),
        params=one_ulp(params, jax.random.key(1)) if perturbed else params,
        batch_stats=variables.get("batch_stats", {}),
        seed=jnp.int32(0),
    )


def measure(name: str, rate: float, batch: int, steps: int, size: int) -> Row:
    """The losses of a network in every variant."""
    model = MODELS[name](classes=1000)
    data = images(batch, size)
    shape = data[0][0].shape[1:]
    begin = functools.partial(start, model, rate, shape)
    step = functools.partial(train_step, label_smoothing=0.0)
    abstract = jax.eval_shape(functools.partial(begin, False))
    coverage = dfpjax.explain(step, abstract, *data[0], policy=POLICIES["dfp16"]).coverage

    losses, seconds = {}, {}
    for variant, (precision, perturbed) in VARIANTS.items():
        apply = with_precision(model.apply, precision)
        state = jax.jit(begin, static_argnums=0)(perturbed).replace(apply_fn=apply)
        losses[variant], times = [], []
        for number in range(steps):
            began = time.perf_counter()
            state, metrics = step(state, *data[number % BATCHES])
            losses[variant].append(float(metrics["loss"]) / batch)
            times.append(time.perf_counter() - began)
        seconds[variant] = float(np.median(times))
        print(f"{name}, {variant}: {', '.join(f'{loss:.4f}' for loss in losses[variant])}", flush=True)
        del state
    jax.clear_caches()
    return Row(model=name, batch=batch, learning_rate=rate, coverage=coverage, losses=losses, seconds=seconds)


def table(rows: list[Row]) -> str:
    """A Markdown table, a row for each network."""
    columns = (
        "network", "batch", "learning rate", "MACs in DFP16", "first loss", "last loss, float32",
        "last loss, DFP16", "DFP16: first step", "DFP16: largest", "one ulp: first step", "one ulp: largest",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    for row in rows:
        ends = (row.losses["float32"][0], row.losses["float32"][-1], row.losses["dfp16"][-1])
        parts = [row.differences(variant) for variant in ("dfp16", "float32, one ulp")]
        cells = (
            row.model, str(row.batch), f"{row.learning_rate:g}", f"{row.coverage:.1%}",
            *(f"{loss:.4f}" for loss in ends),
            *(f"{value:.1e}" for part in parts for value in (part[0], part.max())),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def chart(rows: list[Row], path: Path) -> "Figure":
    """The losses of each network above, and their relative differences from float32's below."""
    figure = figures.new_figure(6)
    axes = figure.subplots(2, len(rows), squeeze=False, sharex=True)
    styles = {
        "float32": {"color": "black", "linestyle": "-"},
        "dfp16": {"color": figures.DFP16, "linestyle": "--"},
        "float32, one ulp": {"color": figures.FLOAT32_PEER, "linestyle": ":"},
    }
    for (above, below), row in zip(axes.T, rows, strict=True):
        numbers = range(1, len(row.losses["float32"]) + 1)
        for variant, style in styles.items():
            above.plot(numbers, row.losses[variant], **style, label=variant)
            if variant != "float32":
                differences = row.differences(variant)
                # A logarithmic axis has no place for losses that are equal.
                shown = np.where(differences > 0, differences, np.nan)
                below.semilogy(numbers, shown, **style, marker=".", markersize=4)
        above.set_title(row.model, loc="left")
        below.set_xlabel("step")
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("relative difference from float32")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figures.save(figure, path)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=RATES, default=list(RATES), help="default: all")
    parser.add_argument("--batch", type=_positive, default=8)
    parser.add_argument("--steps", type=_positive, default=20)
    parser.add_argument("--size", type=_positive, default=224, help="pixels of an image (default: 224)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.png")
    arguments = parser.parse_args(argv)
    prepare_output(parser, arguments.out, draws="chart")
    return arguments


def main(argv=None) -> list[Row]:
    arguments = parse(argv)
    rows = []
    for name in arguments.models:
        rows.append(measure(name, RATES[name], arguments.batch, arguments.steps, arguments.size))
        if arguments.out:
            write(rows, arguments)
    print(f"\n{table(rows)}")
    return rows


def write(rows: list[Row], arguments: argparse.Namespace) -> None:
    """OUT.json and OUT.png."""
    record = {
        "cpu": cpu_model(),
        "cores": CORES,
        "isa": dfpjax.runtime_info().isa,
        "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
        "size": arguments.size,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_record(arguments.out, record)
    chart(rows, arguments.out.with_name(f"{arguments.out.name}.png"))


if __name__ == "__main__":
    main()
