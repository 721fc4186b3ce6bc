"""The page on scaling: what was measured, the model fitted to it, and what the model predicts."""

from dataclasses import dataclass, replace
from pathlib import Path
from string import Template

from benchmarks.scaling.model import (
    Computation,
    Exchange,
    Network,
    Reduction,
    fit_computation,
    fit_network,
    overlap,
    step_seconds,
)

_TEMPLATE = Path(__file__).with_name("page.template.md")

GRADIENTS = ("float32", "dfp16")
_BYTES = {"float32": 4.0, "dfp16": 2 + 1 / 64}  # of a number that is exchanged


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the prediction supposes of the machines and of what connects them.

    gigabits: line rates of networks, Gb/s.
    latency: seconds of a round of a collective.
    efficiency: the part of the line rate that collectives reach.
    machines: numbers of machines.
    speed: of a machine, as a multiple of the measured one's.
    images: of a machine, where the batch grows with the machines (weak scaling).
    batch: images of all machines together, where it does not (strong scaling).
    """

    gigabits: tuple[float, ...] = (10, 25, 100)
    latency: float = 30e-6
    efficiency: float = 0.8
    machines: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    speed: float = 16
    images: int = 64
    batch: int = 4096

    def network(self, gigabits: float) -> Network:
        return Network(latency=self.latency, bandwidth=self.efficiency * gigabits * 1e9 / 8)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The model with the values that explain a measurement."""

    computation: Computation
    loopback: Network
    exchanges: dict[str, Exchange]


def fitted(figures: dict) -> Fitted:
    """The model that explains what `measure` found."""
    alone = [row for row in figures["steps"] if row["processes"] == 1]
    computation = fit_computation([row["images"] for row in alone], [row["seconds"] for row in alone])
    loopback = fit_network(
        [
            Reduction(processes=row["processes"], size=4 * row["numbers"], seconds=row["seconds"])
            for row in figures["reductions"]
            if row["gradients"] == "float32"
        ]
    )
    return Fitted(
        computation=computation,
        loopback=loopback,
        exchanges={
            gradients: _exchange(figures, gradients, computation, loopback) for gradients in GRADIENTS
        },
    )


def _exchange(figures: dict, gradients: str, computation: Computation, loopback: Network) -> Exchange:
    """Of two processes, each on a core of its own."""
    step = [row for row in figures["steps"] if row["processes"] == 2 and row["gradients"] == gradients][-1]
    size, collectives = step["bytes"], step["collectives"]
    sent = loopback.all_reduce(processes=2, size=size, collectives=collectives)
    if gradients == "float32":
        computed = computation.seconds(step["images"])
        part = overlap(step=step["seconds"], computed=computed, sent=sent)
        return Exchange(size=size, collectives=collectives, overlap=part)
    largest = max(
        (row for row in figures["reductions"] if row["processes"] == 2 and row["gradients"] == gradients),
        key=lambda row: row["numbers"],
    )
    sent = loopback.all_reduce(processes=2, size=_BYTES[gradients] * largest["numbers"], collectives=2)
    of_each = max(largest["seconds"] - sent, 0.0) / largest["numbers"]
    return Exchange(size=size, collectives=collectives, seconds=of_each * size / _BYTES[gradients])


def page(figures: dict, assumptions: Assumptions) -> str:
    """The page, in Markdown."""
    model = fitted(figures)
    exchanges = model.exchanges
    ratio = exchanges["dfp16"].size / exchanges["float32"].size
    faster = model.computation.faster(assumptions.speed)
    return Template(_TEMPLATE.read_text()).substitute(
        model=figures["model"],
        fewest=assumptions.machines[0],
        most=assumptions.machines[-1],
        machine=figures["machine"],
        date=figures["date"],
        steps=_steps(figures, model),
        reductions=_reductions(figures, model),
        fixed_ms=f"{1e3 * model.computation.fixed:.0f}",
        image_ms=f"{1e3 * model.computation.per_image:.0f}",
        alpha_us=f"{1e6 * model.loopback.latency:.0f}",
        beta_gb=f"{model.loopback.bandwidth / 1e9:.2f}",
        mantissas_ms=f"{1e3 * exchanges['dfp16'].seconds:.0f}",
        overlap=f"{exchanges['float32'].overlap:.2f}",
        collectives_float32=exchanges["float32"].collectives,
        collectives_dfp16=exchanges["dfp16"].collectives,
        ratio=f"{ratio:.3f}",
        speed=f"{assumptions.speed:g}",
        latency_us=f"{1e6 * assumptions.latency:g}",
        efficiency=f"{100 * assumptions.efficiency:g}",
        images=assumptions.images,
        alone_ms=f"{1e3 * faster.seconds(assumptions.images):.0f}",
        weak=_prediction(model, assumptions, weak=True),
        batch=assumptions.batch,
        strong=_prediction(model, assumptions, weak=False),
    )


def _steps(figures: dict, model: Fitted) -> str:
    rows = []
    for row in figures["steps"]:
        processes = row["processes"]
        shared = max(1.0, processes / figures["cores"])  # processes on a core
        predicted = step_seconds(
            model.computation.faster(1 / shared),
            model.exchanges[row["gradients"]],
            model.loopback,
            processes=processes,
            images=row["images"],
        )
        gradients = row["gradients"] if processes > 1 else "not exchanged"
        cells = (processes, row["images"], gradients, row["collectives"], f"{row['bytes'] / 1e6:.1f}")
        rows.append((*cells, f"{row['seconds']:.2f}", f"{predicted:.2f}"))
    titles = ("processes", "images of each", "gradients", "collectives", "MB", "s", "s, by the model")
    return _table(titles, rows)


def _reductions(figures: dict, model: Fitted) -> str:
    found = {
        (row["processes"], row["numbers"], row["gradients"]): row["seconds"] for row in figures["reductions"]
    }
    rows = [
        (
            processes,
            f"{4e-6 * numbers:.2f}",
            *(f"{1e3 * found[processes, numbers, gradients]:.1f}" for gradients in GRADIENTS),
            f"{1e3 * model.loopback.all_reduce(processes=processes, size=4 * numbers):.1f}",
        )
        for processes, numbers in sorted({key[:2] for key in found})
    ]
    return _table(
        ("processes", "MB in float32", "float32, ms", "DFP16, ms", "float32, ms, by the model"), rows
    )


def _prediction(model: Fitted, assumptions: Assumptions, *, weak: bool) -> str:
    computation = model.computation.faster(assumptions.speed)
    rows = []
    for machines in assumptions.machines:
        images = assumptions.images if weak else assumptions.batch / machines
        cells = []
        for gigabits in assumptions.gigabits:
            for gradients in GRADIENTS:
                exchange = model.exchanges[gradients]
                seconds = step_seconds(
                    computation,
                    replace(exchange, seconds=exchange.seconds / assumptions.speed),
                    assumptions.network(gigabits),
                    processes=machines,
                    images=images,
                )
                cells.append(f"{1e3 * seconds:.0f} ({computation.seconds(images) / seconds:.2f})")
        rows.append((machines, *cells))
    names = {"float32": "float32", "dfp16": "DFP16"}
    titles = (
        f"{rate:g} Gb/s, {names[gradients]}" for rate in assumptions.gigabits for gradients in GRADIENTS
    )
    return _table(("machines", *titles), rows)


def _table(titles, rows) -> str:
    lines = [titles, ["---:"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
