"""Single figures of the documents, by the name that `<!-- figure: NAME -->` gives."""

from collections import Counter
from collections.abc import Callable, Mapping

from benchmarks.common.means import geometric_mean
from benchmarks.common.operations import PASSES
from benchmarks.documents import devices, serving, sources
from benchmarks.fidelity.precisions import DFP16_BLOCKS
from benchmarks.fidelity.results import gain_text
from benchmarks.open_issues.results import JAX
from benchmarks.open_issues.results import OURS as REPORTS_OURS
from benchmarks.open_issues.results import Row as ReportRow
from benchmarks.parity import recipes
from benchmarks.parity import results as parity
from benchmarks.parity.tasks import Run
from benchmarks.train_step.results import COMPILED, OURS, Row

MISSING = "–"
"""Where a contender was not measured."""


def faster(contenders: Mapping[str, Row], name: str) -> Row | None:
    """A contender's row, eager or compiled, whichever is faster; None if it was not measured."""
    found = [contenders[form] for form in (name, f"{name}{COMPILED}") if form in contenders]
    return min(found, key=lambda row: row.median, default=None)


def _ratios(peer: str) -> list[float]:
    """How many times as fast as a peer dfpjax trains, of the networks for which the peer was measured."""
    found = [(c[OURS], faster(c, peer)) for c in sources.training().values()]
    return sorted(other.median / ours.median for ours, other in found if other is not None)


def _range(values: list[float]) -> str:
    if not values:
        return MISSING
    ends = [f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in (values[0], values[-1])]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _rate(network: str, contender: str) -> str:
    row = faster(sources.training()[network], contender)
    return f"{row.rate:.3g}" if row else MISSING


def _report(program: str) -> ReportRow:
    (row,) = (row for row in sources.report_rows() if row.program == program)
    return row


def _milliseconds(program: str, contender: str) -> str:
    value = 1e3 * _report(program).median(contender)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _gains(family: str) -> str:
    """bfloat16's error over DFP16's: fprop, dgrad, wgrad."""
    rows = [row for row in sources.fidelity_rows() if row.family == family]
    means = (
        geometric_mean(row.gain(precision=DFP16_BLOCKS.name) for row in rows if row.which == which)
        for which in PASSES
    )
    return ", ".join(map(gain_text, means))


def _parity_not_worse() -> str:
    """Networks whose first measure is not worse in DFP16, of all."""
    runs = [Run(**run) for run in sources.record("parity")["runs"]]
    tasks = [recipes.task(name, recipes.recipe(name)) for name in recipes.NAMES]
    tests = [parity.paired_test(runs, task, "dfp16_forced", next(iter(task.measures))) for task in tasks]
    verdicts = [test.verdict for test in tests if test is not None]
    return f"{sum(verdict == 'not worse' for verdict in verdicts)} of {len(verdicts)}"


def _parity_seeds() -> str:
    """The seeds of the network that has the fewest."""
    runs = sources.record("parity")["runs"]
    return str(min(Counter(run["task"] for run in runs if run["precision"] == "dfp16_forced").values()))


def _certification_cost() -> str:
    """The time that certified chains take beyond chains of the same length without norms, in percent."""
    means = sources.record("certification")["geometric_means"]
    return f"{100 * (means['certified : chain 256']['all'] - 1):.0f}"


_LOOP = "convolution_in_a_loop"

FIGURES: dict[str, Callable[[], str]] = {
    "certification_cost": _certification_cost,
    "agreement": lambda: serving.agreement("serving_decoder"),
    "agreement_1b": lambda: serving.agreement("serving_decoder_1b"),
    "tokens_frozen": lambda: serving.tokens("frozen"),
    "tokens_jax_float32": lambda: serving.tokens("jax float32"),
    "tokens_torch_bfloat16": lambda: serving.tokens("torch bfloat16"),
    "resnet50_native_calls": devices.resnet_native,
    "resnet50_exchanged": devices.resnet_bytes,
    "machine": lambda: sources.machine("train_step"),
    "machine_block_sizes": lambda: sources.machine("block_sizes"),
    "machine_chains": lambda: sources.machine("chains"),
    "machine_fidelity": lambda: sources.machine("fidelity_blocks"),
    "machine_inference": lambda: sources.machine("inference"),
    "machine_kept": lambda: sources.machine("kept"),
    "machine_kernels": lambda: sources.machine("kernels"),
    "machine_parity": lambda: sources.machine("parity"),
    "machine_reports": lambda: sources.machine("open_issues"),
    "machine_serving": lambda: sources.machine("serving_products"),
    "machine_sequences": lambda: sources.machine("sequences"),
    "machine_winograd": lambda: sources.machine("kernels_winograd"),
    "training_jax_float32": lambda: _range(_ratios("JAX float32")),
    "training_jax_bfloat16": lambda: _range(_ratios("JAX bfloat16")),
    "training_torch_float32": lambda: _range(_ratios("PyTorch float32")),
    "training_torch_bfloat16": lambda: _range(_ratios("PyTorch bfloat16")),
    "resnet50_rate": lambda: _rate("resnet50", OURS),
    "resnet50_jax_float32": lambda: _rate("resnet50", "JAX float32"),
    "resnet50_jax_bfloat16": lambda: _rate("resnet50", "JAX bfloat16"),
    "resnet50_torch_float32": lambda: _rate("resnet50", "PyTorch float32"),
    "resnet50_torch_bfloat16": lambda: _rate("resnet50", "PyTorch bfloat16"),
    "loop_jax_ms": lambda: _milliseconds(_LOOP, JAX),
    "loop_ms": lambda: _milliseconds(_LOOP, REPORTS_OURS),
    "loop_times": lambda: f"{_report(_LOOP).times(JAX):.0f}",
    "parity_not_worse": _parity_not_worse,
    "parity_seeds": _parity_seeds,
    "fidelity_resnet50": lambda: _gains("ResNet-50, step 10"),
    "fidelity_vit": lambda: _gains("ViT-S/16, step 10"),
}
"""What each name stands for."""
