"""The tables of the documents, as Markdown, by the name that `<!-- tables: NAME -->` gives."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from benchmarks import dry_run
from benchmarks.common.markdown import markdown
from benchmarks.common.means import geometric_mean
from benchmarks.common.operations import PASSES
from benchmarks.documents import devices, figures, kernels, serving, sources
from benchmarks.fidelity import results as fidelity
from benchmarks.fidelity.precisions import DFP16, DFP16_BLOCKS
from benchmarks.fidelity.results import gain_text
from benchmarks.open_issues import results as open_issues
from benchmarks.parity import recipes, validation
from benchmarks.parity import results as parity
from benchmarks.parity.tasks import Run, Share
from benchmarks.robustness import results as robustness
from benchmarks.robustness.depth import DepthRow
from benchmarks.robustness.nonfinite import NonfiniteRow
from benchmarks.robustness.outliers import ChannelRow, PaddingRow
from benchmarks.train_step.results import FROZEN, OURS, PEERS, TITLES
from benchmarks.train_step.results import Row as StepRow


def _steps(found: dict[str, dict[str, StepRow]]) -> str:
    head = ["network, batch", *PEERS[:2], "**dfpjax**", *PEERS[2:], *(f"dfpjax : {peer}" for peer in PEERS)]
    lines = []
    for network, contenders in found.items():
        ours = contenders[OURS]
        peers = [figures.faster(contenders, peer) for peer in PEERS]
        rates = [f"{peer.rate:.3g}" if peer else "" for peer in peers]
        ratios = [f"{peer.median / ours.median:.2f}" if peer else "" for peer in peers]
        name = f"{TITLES[network]}, {ours.batch}{' texts' if ours.takes == 'texts' else ''}"
        lines.append([name, *rates[:2], f"**{ours.rate:.3g}**", *rates[2:], *ratios])
    return markdown(head, lines)


def training() -> str:
    """Images or texts per second in training steps."""
    return _steps(sources.training())


def inference() -> str:
    """The same in forward passes."""
    return _steps(sources.inference())


def inference_frozen() -> str:
    """Forward passes with frozen weights: rates, and the most memory in GB."""
    names = ("JAX float32", OURS, FROZEN)
    titles = ("JAX float32", "dfpjax", "**dfpjax, frozen**")
    head = ["network, batch", *titles, "frozen : JAX float32", "frozen : dfpjax"]
    head += [f"GB: {title}" for title in titles]
    lines = []
    for network, contenders in sources.frozen_inference().items():
        plain, ours, frozen = (contenders[name] for name in names)
        rates = (f"{plain.rate:.3g}", f"{ours.rate:.3g}", f"**{frozen.rate:.3g}**")
        ratios = (f"{other.median / frozen.median:.2f}" for other in (plain, ours))
        sizes = (f"{row.peak_bytes / 1e9:.2f}" for row in (plain, ours, frozen))
        lines.append([f"{TITLES[network]}, {ours.batch}", *rates, *ratios, *sizes])
    return markdown(head, lines)


def memory() -> str:
    """The most memory of a training step, GB."""
    return _memory(sources.training())


def inference_memory() -> str:
    """The most memory of a forward pass, GB."""
    return _memory(sources.inference())


def _memory(found: dict[str, dict[str, StepRow]]) -> str:
    head = ["network, batch", *PEERS[:2], "**dfpjax**", *PEERS[2:]]
    lines = []
    for network, contenders in found.items():
        peers = [figures.faster(contenders, peer) for peer in PEERS]
        cells = [f"{peer.peak_bytes / 1e9:.1f}" if peer else "" for peer in peers]
        ours = contenders[OURS]
        own = f"**{ours.peak_bytes / 1e9:.1f}**"
        lines.append([f"{TITLES[network]}, {ours.batch}", *cells[:2], own, *cells[2:]])
    return markdown(head, lines)


def breakdown() -> str:
    """Where a step's time goes, in seconds, and the GB that each class of operation reads and writes."""
    rows = {name: c[OURS] for name, c in sources.training().items() if c[OURS].breakdown}
    parts = {name: row.breakdown for name, row in rows.items() if row.breakdown}
    classes = dict.fromkeys(kind for part in parts.values() for kind in part["classes"])

    def cell(spent: dict | None) -> str:
        return f"{spent['seconds']:.2f} ({spent['bytes'] / 1e9:.1f})" if spent else ""

    lines = [
        [kind, *(cell(part["classes"].get(kind)) for part in parts.values())]
        for kind in classes
        if kind != "nothing under way"
    ]
    lines.append(["a step that is not profiled", *(f"{rows[name].median:.2f}" for name in parts)])
    return markdown(["s (GB)", *(f"{TITLES[name]}, {rows[name].batch}" for name in parts)], lines)


def open_reports() -> str:
    """Programs of reports that JAX is slow on CPUs."""
    return open_issues.table(sources.report_rows())


def _parity_runs(name: str) -> list[Run]:
    return [Run(**run) for run in sources.record(name)["runs"]]


def _parity_tasks() -> list:
    return [recipes.task(name, recipes.recipe(name)) for name in recipes.NAMES]


def parity_all() -> str:
    """All tables of `benchmarks.parity`."""
    shares = {name: Share(**share) for name, share in sources.record("parity")["shares"].items()}
    return parity.report(_parity_runs("parity"), shares, _parity_tasks())


def parity_verdicts() -> str:
    """The first measure of each network, and whether DFP16 is worse."""
    runs, lines = _parity_runs("parity"), []
    for task in _parity_tasks():
        measure = next(iter(task.measures))
        test = parity.paired_test(runs, task, "dfp16_forced", measure)
        if test is None:
            continue
        means = []
        for precision in ("float32", "dfp16_forced"):
            of_seeds = [v for v in parity.values(runs, task, precision, measure).values() if math.isfinite(v)]
            mean, spread = sum(of_seeds) / len(of_seeds), _deviation(of_seeds)
            means.append(f"{parity.number(mean, measure)} ± {parity.number(spread, measure)}")
        worse = "no" if test.verdict == "not worse" else test.verdict
        lines.append([task.title, measure, str(len(test.differences)), *means, f"{worse} (p = {test.p:.2g})"])
    head = ["network", "measure", "seeds", "float32", "DFP16", "DFP16 worse?"]
    return markdown(head, lines, words=2)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def parity_recipes() -> str:
    """What the candidates reach on the validation split."""
    return validation.table(_parity_runs("parity_recipes"), recipes.NAMES)


def dry_run_losses() -> str:
    return dry_run.table(sources.dry_run_rows())


def _last_steps(rows: Sequence[fidelity.Row]) -> list[fidelity.Row]:
    """Without those of the second step: random tensors have no steps."""
    return [row for row in rows if not row.family.endswith("step 2")]


def fidelity_blocks() -> str:
    """bfloat16's error over DFP16's, by kind of tensor and pass."""
    return fidelity.granularities(_last_steps(sources.fidelity_rows()))


def fidelity_short() -> str:
    """The means, and the worst operation in parentheses: exponents of blocks, and one for each tensor."""
    groups = fidelity.by_family_and_pass(_last_steps(sources.fidelity_rows()))

    def cell(family: str, which: str, precision: str) -> str:
        gains = [row.gain(precision=precision) for row in groups[family, which]]
        return f"{gain_text(geometric_mean(gains))} ({gain_text(min(gains))})"

    families = dict.fromkeys(family for family, _ in groups)
    precisions = (DFP16_BLOCKS.name, DFP16.name)
    lines = [
        [family.removesuffix(", step 10"), *(cell(family, which, p) for p in precisions for which in PASSES)]
        for family in families
    ]
    return markdown(["tensors", *PASSES, *(f"one exponent: {which}" for which in PASSES)], lines)


def fidelity_winograd() -> str:
    """The same of the convolutions that Winograd algorithms suit, by algorithm."""
    files = ("fidelity_winograd", "fidelity_winograd_batch2")
    rows = _last_steps([fidelity.Row(**row) for file in files for row in sources.record(file)["rows"]])
    both = [dataclasses.replace(row, family="ResNet-50 and VGG-16, step 10") for row in rows if row.layer]
    return fidelity.algorithms([*rows, *both])


def fidelity_one_exponent() -> str:
    return fidelity.summary([fidelity.Row(**row) for row in sources.record("fidelity")["rows"]])


def fidelity_layers() -> str:
    """The layers of ResNet-50 at the last step, with one exponent for each tensor."""
    rows = [fidelity.Row(**row) for row in sources.record("fidelity")["rows"]]
    last = [row for row in rows if row.layer and row.family.endswith("step 40")]
    lines = [
        [
            row.layer, row.operation, row.which,
            *(f"{value:.3f}" for value in row.rms_over_max), *(f"{share:.1%}" for share in row.lost),
            *(fidelity.number_text(row.error(name)) for name in ("DFP-16", "DFP-16 stochastic", "bfloat16")),
            gain_text(row.gain()),
        ]
        for row in last
    ]  # fmt: skip
    head = [
        "layer", "operation", "pass", "rms / max", "", "lost", "", "DFP-16", "DFP-16 stochastic", "bfloat16",
        "bfloat16 : DFP-16",
    ]  # fmt: skip
    return markdown(head, lines, words=3)


def robustness_all() -> str:
    """All tables of `benchmarks.robustness`."""
    found = sources.record("robustness")
    return robustness.tables(
        outlier_channel=[ChannelRow(**row) for row in found["outlier_channel"]],
        padding_token=[PaddingRow(**row) for row in found["padding_token"]],
        nonfinite=[NonfiniteRow(**row) for row in found["nonfinite"]],
        depth=[DepthRow(**row) for row in found["depth"]],
    )


TABLES: dict[str, Callable[[], str]] = {
    "block_sizes": kernels.sizes_of_blocks,
    "breakdown": breakdown,
    "chains": kernels.chain_lengths,
    "collectives": devices.collectives,
    "decoder": serving.decoder,
    "decoder_1b": serving.decoder_1b,
    "dry_run": dry_run_losses,
    "fidelity_blocks": fidelity_blocks,
    "fidelity_layers": fidelity_layers,
    "fidelity_one_exponent": fidelity_one_exponent,
    "fidelity_short": fidelity_short,
    "fidelity_winograd": fidelity_winograd,
    "frameworks": serving.frameworks,
    "inference": inference,
    "inference_frozen": inference_frozen,
    "inference_memory": inference_memory,
    "kept_operands": kernels.kept_operands,
    "kernels": kernels.direct,
    "kernels_winograd": kernels.winograd,
    "memory": memory,
    "open_reports": open_reports,
    "parity": parity_all,
    "parity_recipes": parity_recipes,
    "parity_verdicts": parity_verdicts,
    "robustness": robustness_all,
    "serving_products": serving.products,
    "shardings": devices.shardings,
    "training": training,
}
"""What each name stands for."""
