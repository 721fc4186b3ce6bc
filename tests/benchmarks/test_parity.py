"""The parity benchmark tests what it claims to test."""

import dataclasses
import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from scipy import linalg, stats

from benchmarks.parity import __main__ as parity
from benchmarks.parity import gan, recipes, splits, text, validation, workers
from benchmarks.parity.record import Record
from benchmarks.parity.results import Test, paired_test, pooled_test, report
from benchmarks.parity.tasks import PRECISIONS, Recipe, Run, Task

ACCURACY, LOSS = "accuracy", "loss"


def quick(name: str) -> Task:
    """A network with next to no training."""
    return recipes.task(name, recipes.recipe(name, quick=True))


@pytest.fixture(scope="module")
def vgg() -> Task:
    return quick("vgg")


def _runs(task: Task, precision: str, finals: list[float]) -> list[Run]:
    """Runs with these results on the test split, and others in validation."""

    def run(seed: int, value: float) -> Run:
        curves = {"training loss": [1.0], **{name: [value / 2] for name in task.measures}}
        test = dict.fromkeys(task.measures, value)
        return Run(task=task.name, precision=precision, seed=seed, curves=curves, test=test, seconds=1.0)

    return list(itertools.starmap(run, enumerate(finals)))


@pytest.mark.parametrize("margin", [0.3, 1.0])
def test_the_paired_test_is_that_of_scipy(margin):
    differences = [0.1, -0.4, 0.3, 0.2, 0.15]
    test = Test(differences=differences, margin=margin)
    expected = stats.ttest_1samp(differences, margin, alternative="less")
    assert test.p == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.9)  # 5 % on each side
    assert test.bounds == pytest.approx((low, high), rel=1e-9)
    assert (test.verdict == "not worse") == (high < margin)


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([0.0, 0.1, -0.1], 1.0, "not worse"),
        ([0.5, 0.6, 0.55], 1.0, "not worse"),  # worse, but by less than the margin
        ([3.0, 3.1, 2.9], 1.0, "worse"),
        ([0.0, 2.0, -1.5], 1.0, "undecided"),
        ([0.0, 0.0, 0.0], 1.0, "not worse"),
        ([0.0, 0.1, -0.1], 0.0, "no margin"),
        ([0.0, math.nan, -0.1], 1.0, "diverged"),
    ],
)
def test_verdicts(differences, margin, verdict):
    assert Test(differences=differences, margin=margin).verdict == verdict


def test_more_is_worse_for_a_loss_and_less_for_an_accuracy(vgg):
    runs = _runs(vgg, "float32", [0.9, 0.8, 0.7]) + _runs(vgg, "dfp16_forced", [0.8, 0.8, 0.6])
    accuracy, loss = (paired_test(runs, vgg, "dfp16_forced", measure) for measure in (ACCURACY, LOSS))
    assert accuracy.differences == pytest.approx([0.1, 0.0, 0.1])
    assert loss.differences == pytest.approx([-0.1, 0.0, -0.1])
    assert accuracy.margin == pytest.approx(0.1)


def test_only_seeds_that_both_have_are_paired(vgg):
    runs = _runs(vgg, "float32", [1.0, 2.0, 3.0]) + _runs(vgg, "bfloat16", [1.5, 2.0, 3.0])[1:]
    assert paired_test(runs, vgg, "bfloat16", LOSS).differences == [0.0, 0.0]
    assert paired_test(runs, vgg, "dfp16_forced", LOSS) is None


def test_the_tables_have_the_precisions_that_were_run_and_their_seeds(vgg):
    shown = report(_runs(vgg, "float32", [0.5, 0.75]) + _runs(vgg, "dfp16_forced", [0.5]), {}, [vgg])
    assert "| measure | seeds | float32 | DFP16 |\n" in shown
    assert "| loss | 2 / 1 | 0.6250 ± 0.1768 | 0.5000 |\n" in shown
    assert "bfloat16" not in shown


def test_the_pooled_test_counts_in_deviations_and_leaves_out_what_has_none():
    tests = [
        Test(differences=[1.0, 2.0], margin=2.0),
        Test(differences=[0.1, -0.1], margin=0.1),
        Test(differences=[5.0, 5.0], margin=0.0),
        Test(differences=[5.0, math.nan], margin=1.0),
    ]
    pooled = pooled_test(tests)
    assert pooled.differences == pytest.approx([0.5, 1.0, 1.0, -1.0])
    assert pooled.margin == 1.0
    assert pooled_test(tests[2:]) is None


def test_the_frechet_distance_is_that_of_its_formula():
    random = np.random.default_rng(0)
    one = random.normal(size=(500, 6)) @ random.normal(size=(6, 6))
    other = random.normal(size=(400, 6)) @ random.normal(size=(6, 6)) + 1
    (a, b), means = (np.cov(x, rowvar=False) for x in (one, other)), one.mean(0) - other.mean(0)
    expected = means @ means + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert gan.frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert gan.frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_the_judge_tells_digits_from_noise():
    judge = gan.judge()
    real, _ = splits.digits(splits.TRAIN)
    half, rest = real[::2], real[1::2]
    noise = np.random.default_rng(0).uniform(-1, 1, size=half.shape).astype(np.float32)
    between = gan.frechet_distance(judge.features(half), judge.features(rest))
    assert 10 * between < judge.distance(noise, splits.TRAIN)


def test_the_digits_are_split_into_three():
    images = [splits.digits(split)[0] for split in (splits.TRAIN, splits.VALIDATION, splits.TEST)]
    assert [len(part) for part in images] == [1152, 200, 445]
    # All different images of scikit-learn's.
    assert len(np.unique(np.concatenate(images).reshape(1797, -1), axis=0)) == 1797
    assert min(map(np.min, images)) == -1 and max(map(np.max, images)) == 1


def test_text_is_held_out_and_pieces_cover_it():
    corpus = text.corpus()
    whole = np.concatenate([corpus.train, corpus.validation, corpus.test])
    assert (whole.min(), whole.max()) == (0, corpus.characters - 1)
    assert len(corpus.validation) == len(corpus.test) == len(whole) // 20
    pieces = text._pieces(corpus.test)
    np.testing.assert_array_equal(np.ravel(pieces[:, 1:]), corpus.test[1 : pieces[:, 1:].size + 1])
    first, again, other = (next(text.batches(corpus.train, seed)) for seed in (0, 0, 1))
    assert first.shape == (text.BATCH, text.LENGTH + 1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_operation_of_a_forced_step_is_in_dfp16(vgg):
    share = vgg.share("dfp16_forced")
    # Each of eight layers has three passes, but the first layer's input has no gradient.
    assert share.operations == share.operations_dfp16 == 3 * 8 - 1
    assert share.macs == share.macs_dfp16 > 0
    assert vgg.share("dfp16").macs_dfp16 < share.macs
    assert vgg.share("bfloat16") is None
    game = quick("gan").share("dfp16_forced")
    assert game.macs_dfp16 > 0.999 * game.macs  # all but dot products of one term


def _job(network: str, **changes) -> workers.Job:
    (job,) = parity.jobs([network], ("float32",), [0, 1], quick=True)
    return dataclasses.replace(job, **changes)


def test_an_interrupted_benchmark_goes_on_where_it_was(vgg, tmp_path):
    path = tmp_path / "parity.json"
    texts = {"vgg": "as ever", "gan": "another"}
    record = Record(path, texts)
    (run,) = _runs(vgg, "float32", [1.0])
    record.add(run)
    again = Record(path, texts)
    assert again.runs == [run]
    both = [_job("vgg"), _job("vgg", seeds=[0]), _job("vgg", precision="bfloat16"), _job("gan")]
    assert again.missing(both) == [_job("vgg", seeds=[1]), *both[2:]]
    # A recipe without runs may change.
    assert Record(path, texts | {"gan": "longer"}).runs == [run]
    with pytest.raises(ValueError, match=r"parity\.json has runs of other recipes for vgg"):
        Record(path, texts | {"vgg": "longer"})


def test_more_seeds_where_the_first_do_not_decide(vgg):
    base = _runs(vgg, "float32", [0.9, 0.8] * 12 + [0.9])
    apart, equal = (_runs(vgg, "dfp16_forced", finals * 12 + [0.9]) for finals in ([0.7, 1.0], [0.9, 0.8]))
    first = len(parity.SEEDS)
    assert parity.undecided(["vgg", "gan"], base + apart) == ["vgg"]
    assert parity.undecided(["vgg"], base + equal) == []
    # The first seeds alone count, and all of them.
    assert parity.undecided(["vgg"], base + apart[:first] + equal[first:]) == ["vgg"]
    assert parity.undecided(["vgg"], base + apart[: first - 1]) == []


@pytest.mark.parametrize("every", [False, True])
def test_what_15_seeds_do_not_decide_is_trained_with_25(every, monkeypatch, capsys):
    asked = []
    results = {"float32": [0.9, 0.8], "dfp16_forced": [0.7, 1.0]}

    def run_all(jobs, processes, record):
        assert processes == 3
        for job in jobs:
            asked.append((job.network, job.precision, *job.seeds))
            both = results.get(job.precision if job.network == "vgg" else "float32", [0.9, 0.8])
            runs = _runs(quick(job.network), job.precision, (both * 13)[: job.seeds[-1] + 1])
            for run in runs[job.seeds[0] :]:
                record(run)

    monkeypatch.setattr(parity, "run_all", run_all)
    parity.main(["--only", "vgg,gan", "--processes", "3", *["--every-precision"] * every])
    both = PRECISIONS[:2]
    assert asked == [
        *((name, precision, *range(15)) for name in ("vgg", "gan") for precision in both),
        *(("vgg", precision, *range(15, 25)) for precision in both),
        *(
            (name, precision, *seeds)
            for precision in (PRECISIONS[2:] if every else ())
            for name, seeds in (("vgg", range(15)), ("gan", range(15)), ("vgg", range(15, 25)))
        ),
    ]
    assert (
        f"| VGG | {recipes.task('vgg', recipes.recipe('vgg')).recipe} | loss | 25 |"
        in capsys.readouterr().out
    )


def test_what_is_there_can_be_shown_without_training(vgg, tmp_path, capsys):
    record = Record(tmp_path / "parity.json", {"vgg": vgg.recipe})
    for precision in PRECISIONS:
        for run in _runs(vgg, precision, [0.25, 0.5]):
            record.add(run)
    parity.main(["--quick", "--show", "--out", str(tmp_path / "parity")])
    printed = capsys.readouterr().out
    assert "| VGG | " + vgg.recipe + " | loss | 2 | 0.3750 ± 0.1768 |" in printed
    assert (tmp_path / "parity.png").stat().st_size > 10_000


def test_the_recipes_are_among_the_candidates():
    for name in recipes.NAMES:
        assert recipes.recipe(name) in recipes.CANDIDATES[name]


def test_candidates_are_compared_in_validation(tmp_path, capsys):
    job, *_ = validation.jobs(["vgg"])
    record = validation.record_of(tmp_path / "recipes.json")
    (run,) = _runs(recipes.task("vgg", job.recipe), "float32", [0.5])
    record.add(dataclasses.replace(run, task=job.name, test={}))
    parity.main(["--validate", "--show", "--out", str(tmp_path / "recipes")])
    recipe = recipes.task("vgg", job.recipe).recipe
    assert f"| VGG | {recipe} | accuracy, loss | 25.00 %, 0.2500 |" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["recipes.json"]


@functools.cache
def _computes_bfloat16_right() -> bool:
    """Whether two convolutions and a pooling are right: jaxlib 0.12.0.1 gives infinities."""

    @jax.jit
    def pooled(x, w):
        for _ in range(2):
            x = nn.relu(
                lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            )
        return nn.max_pool(x, (2, 2), (2, 2))

    random = np.random.default_rng(0)
    x, w = random.random((7, 8, 8, 64)), random.standard_normal((3, 3, 64, 64)) / 10
    return bool(
        np.isfinite(np.asarray(pooled(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)), np.float32)).all()
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["dfp16_forced_stochastic", "bfloat16"])
@pytest.mark.parametrize("name", ["vgg", "lstm", pytest.param("gan", marks=pytest.mark.optimized)])
def test_tasks_train(name, precision):
    if precision == "bfloat16" and not _computes_bfloat16_right():
        pytest.skip(f"JAX {jax.__version__} computes plain bfloat16 convolutions and pooling wrongly here")
    task = quick(name)
    runs = [*task.train(precision, [0], test=True), *task.train(precision, [1], test=False)]
    assert [(run.task, run.precision, run.seed) for run in runs] == [(name, precision, s) for s in (0, 1)]
    for run in runs:
        assert not run.diverged
        assert set(task.measures) < set(run.curves)
        assert len({len(curve) for curve in run.curves.values()}) == 1
        assert np.isfinite([*run.curves.values()]).all()
    assert runs[0].curves != runs[1].curves
    assert set(runs[0].test) == set(task.measures) and np.isfinite([*runs[0].test.values()]).all()
    assert runs[1].test == {}


@pytest.mark.slow
def test_processes_train_as_this_one_does():
    """Those of the benchmark train several seeds with one thread each."""
    jobs = [_job("vgg", precision="dfp16_forced", name="another name", seeds=[3, 4]), _job("gan", seeds=[3])]
    runs = []
    workers.run_all(jobs, 2, runs.append)
    assert {(run.task, run.precision, run.seed) for run in runs} == {
        *(("another name", "dfp16_forced", seed) for seed in (3, 4)),
        ("gan", "float32", 3),
    }
    (here,) = quick("vgg").train("dfp16_forced", [4], test=True)
    (there,) = (run for run in runs if (run.precision, run.seed) == ("dfp16_forced", 4))
    assert there.test == pytest.approx(here.test, rel=1e-3)


@pytest.mark.slow
def test_a_process_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="training vgg in no such failed"):
        workers.run_all([_job("vgg", precision="no such")], 1, print)


@pytest.mark.slow
def test_a_run_that_diverges_is_recorded_and_the_next_one_goes_on():
    task = recipes.task("vgg", Recipe(1e30, 1))
    runs = [*task.train("float32", [3, 4], test=True)]
    assert [(run.seed, run.diverged, run.test) for run in runs] == [(3, True, {}), (4, True, {})]
    assert "(2 diverged)" in report(runs, {}, [task])


def test_wrong_arguments_are_errors_that_say_what_to_do(capsys, tmp_path):
    (tmp_path / "parity.json").write_text(json.dumps({"recipes": {"gan": "other"}}))
    for arguments, message in (
        (["--only", "lenet"], "no network lenet; there are resnet, vgg"),
        (["--processes", "0"], "give the number of processes, 1 or more"),
        (["--seeds", "0,a"], "give seeds as numbers from 0 up, such as 0,1,2"),
        (["--out", str(tmp_path / "parity")], "other recipes for gan"),
        (["--show"], "--show needs --out, the results to show"),
    ):
        with pytest.raises(SystemExit):
            parity.main(arguments)
        assert message in capsys.readouterr().err
