import importlib.util
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import run_script, start_script
from rich.console import Console
from tensorboardX.proto import event_pb2
from tiny import MODEL
from transform_helpers import normal

from dfpjax.training import Report, TrainConfig, train
from dfpjax.training.metrics import Totals
from dfpjax.training.precision import PRECISIONS, model_dtype, with_precision
from dfpjax.training.state import step_metrics
from dfpjax.training.weights import checkpoint_steps

ROOT = Path(__file__).parents[2]


def _train(config: TrainConfig, workdir: Path | None = None) -> tuple[list, str]:
    """The results of a run and what it printed."""
    console = Console(file=io.StringIO(), width=100)
    with Report(console, workdir) as report:
        results = train(config, report)
    return results, console.file.getvalue()


def _scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by name, from TensorBoard's event files: length, checksum, event, checksum, and so on."""
    scalars = {}
    for file in directory.glob("events*"):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            for value in event.summary.value:
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
            content = content[12 + length + 4 :]
    return scalars


def _metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_epochs_reduce_the_loss_and_are_reported(make_config, tmp_path):
    config = make_config(model=MODEL, train_split="train[:512]", warmup=0.0)
    (result,), printed = _train(config, tmp_path / "new" / "workdir")
    first, second = _metrics(tmp_path / "new" / "workdir")
    assert (first["epoch"], second["epoch"]) == (1, 2)
    assert second["train_loss"] < 0.7 * first["train_loss"]
    assert second["train_accuracy"] > first["train_accuracy"]
    assert {second["precision"], result.precision} == {"float32"}
    assert (result.test_accuracy, result.test_loss) == (second["test_accuracy"], second["test_loss"])
    assert first["images_per_second"] > 0
    assert first["seconds"] < second["seconds"]
    assert printed.count("epoch ") == 2
    assert "\x1b" not in printed  # plain lines where there is no terminal
    table = (tmp_path / "new" / "workdir" / "result.md").read_text()
    assert "test accuracy" in table
    assert f"{result.test_accuracy:.2%}" in table
    assert table.splitlines()[2] in printed
    assert first["test_accuracy"] <= first["test_top5_accuracy"] <= 1
    assert f"{result.test_top5_accuracy:.2%}" in table
    assert result.test_top5_accuracy == second["test_top5_accuracy"]
    assert first["learning_rate"] > second["learning_rate"] > 0


def test_a_seed_decides_everything_and_several_make_a_row_each(make_config, tmp_path):
    results, _ = _train(make_config(model=MODEL, seed=(1, 2), epochs=1), tmp_path)
    (again,), _ = _train(make_config(model=MODEL, seed=(1,), epochs=1))
    assert again.test_loss == results[0].test_loss
    assert again.test_loss != results[1].test_loss
    rows = [line.split("|") for line in (tmp_path / "result.md").read_text().splitlines()]
    assert [row[2].strip() for row in rows] == ["seed", "-" * len(rows[1][2]), "1", "2", "mean"]
    mean = np.mean([result.test_accuracy for result in results])
    assert rows[-1][3].strip() == f"{mean:.2%}"


@pytest.mark.slow
def test_statistics_are_recorded_and_drawn_and_change_nothing(make_config, tmp_path):
    (plain,), _ = _train(make_config(precision="dfp16"), tmp_path / "plain")
    assert not list(tmp_path.glob("plain/statistics*"))
    (result,), _ = _train(make_config(precision="dfp16", statistics_every=3), tmp_path)
    assert (result.test_loss, result.test_accuracy) == (plain.test_loss, plain.test_accuracy)
    records = [json.loads(line) for line in (tmp_path / "statistics.jsonl").read_text().splitlines()]
    assert sorted({record["step"] for record in records}) == [0, 3, 6]  # of 8 steps
    assert {record["operand"] for record in records} == {"input", "weight", "output_gradient"}
    assert all(record["layer"].startswith("ResNet/Basic_") and record["seed"] == 0 for record in records)
    assert all(record["sqnr_db"] is None or record["sqnr_db"] > 50 for record in records)
    scalars = _scalars(tmp_path / "tensorboard" / "seed_0")
    assert [step for step, _ in scalars["metrics/test_loss"]] == [1, 2]
    assert scalars["metrics/test_loss"][-1][1] == pytest.approx(result.test_loss, rel=1e-6)
    layer = records[0]["layer"]
    recorded = [(r["step"], r["exponent"]) for r in records if (r["layer"], r["operand"]) == (layer, "input")]
    assert scalars[f"{layer}/input/exponent"] == recorded
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "statistics_0.png").read_bytes().startswith(b"\x89PNG")


def test_a_batch_may_be_trained_on_in_parts(make_config, tmp_path):
    _train(make_config(model=MODEL, accumulate=2, train_split="train[:512]", warmup=0.0), tmp_path)
    first, second = _metrics(tmp_path)
    assert second["train_loss"] < 0.8 * first["train_loss"]


def test_totals_do_not_depend_on_how_the_images_were_batched():
    logits = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32)
    labels = np.arange(50, dtype=np.int32) % 10
    whole, parts = Totals(), Totals()
    whole.add(step_metrics(jnp.array(logits), jnp.array(labels)), 50)
    for part in (slice(0, 20), slice(20, 40), slice(40, 50)):
        parts.add(step_metrics(jnp.array(logits[part]), jnp.array(labels[part])), len(labels[part]))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.accuracy == whole.accuracy == np.mean(logits.argmax(axis=-1) == labels)
    cross_entropies = np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(50), labels]
    assert whole.loss == pytest.approx(float(cross_entropies.mean()), rel=1e-6)


@pytest.mark.parametrize("classes", [3, 5, 6, 10])
def test_top5_accuracy_counts_classes_among_the_first_five(classes):
    logits = np.random.default_rng(1).normal(size=(40, classes)).astype(np.float32)
    labels = np.arange(40, dtype=np.int32) % classes
    metrics = step_metrics(jnp.array(logits), jnp.array([*labels, -1])[:-1])
    ranks = [sorted(row, reverse=True).index(row[label]) for row, label in zip(logits, labels, strict=True)]
    assert metrics["correct_top5"] == sum(rank < 5 for rank in ranks)
    assert (metrics["correct_top5"] == 40) == (classes <= 5)


def test_images_that_fill_up_a_batch_count_for_nothing():
    logits = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)
    labels = np.arange(8, dtype=np.int32)
    expected = step_metrics(jnp.array(logits[:5]), jnp.array(labels[:5]), 0.1)
    metrics = step_metrics(jnp.array(logits), jnp.array([*labels[:5], -1, -1, -1]), 0.1)
    assert metrics["correct"] == expected["correct"]
    assert metrics["correct_top5"] == expected["correct_top5"]
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)


def test_evaluation_does_not_depend_on_how_the_images_are_batched(make_config):
    (expected,), _ = _train(make_config(model=MODEL, epochs=1, eval_batch_size=50))
    (result,), _ = _train(make_config(model=MODEL, epochs=1, eval_batch_size=20))
    assert result.test_loss == pytest.approx(expected.test_loss, rel=1e-5)
    assert result.test_accuracy == expected.test_accuracy


def test_a_loss_that_is_not_finite_stops_the_run(make_config):
    with pytest.raises(FloatingPointError, match="the training loss of epoch 1, seed 0, is nan"):
        _train(make_config(model=MODEL, learning_rate=1e30, warmup=0.0))


def test_too_large_a_batch_is_an_error(make_config):
    with pytest.raises(ValueError, match="batch_size is 200; train_split has 128 images only"):
        _train(make_config(batch_size=200))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "precision",
            "fp8",
            "precision is 'fp8'; it must be one of float32, bfloat16, dfp16, dfp16_stochastic,",
        ),
        ("model", "vgg", "model is 'vgg'; it must be one of alexnet, googlenet, resnet50, vgg16, "),
        (
            "dataset",
            "mnist",
            "dataset is 'mnist'; it must be one of digits, fake_imagenet, image_folder, .*, tfds:NAME",
        ),
        ("dataset", "tfds:", "dataset is 'tfds:'; it must be one of digits"),
        ("seed", (), r"seed is \(\); it must be a tuple of one or more different integers of at least 0"),
        ("seed", (1, 2, 1), r"seed is \(1, 2, 1\); it must be a tuple of one or more different integers"),
        ("seed", 3, "seed is 3; it must be a tuple"),
        ("seed", (-1,), r"seed is \(-1,\); it must be"),
        ("seed", ("a",), r"seed is \('a',\); it must be"),
        ("epochs", 0, "epochs is 0; it must be at least 1"),
        ("batch_size", -1, "batch_size is -1; it must be at least 1"),
        ("eval_batch_size", 0, "eval_batch_size is 0; it must be at least 1"),
        ("accumulate", 0, "accumulate is 0; it must be a divisor of batch_size, which is 32"),
        ("accumulate", 5, "accumulate is 5; it must be a divisor of batch_size, which is 32"),
        ("image_size", 0, "image_size is 0; it must be None or at least 1"),
        ("min_crop_area", 0.0, "min_crop_area is 0.0; it must be above 0 and at most 1"),
        ("workers", -1, "workers is -1; it must be at least 0"),
        ("max_shift", -1, "max_shift is -1; it must be at least 0"),
        ("learning_rate", 0.0, "learning_rate is 0.0; it must be above 0"),
        ("warmup", 1.0, "warmup is 1.0; it must be from 0 to below 1"),
        ("schedule", "steps", "schedule is 'steps'; it must be one of constant, cosine, polynomial, step"),
        ("decay_factor", 0.0, "decay_factor is 0.0; it must be above 0 and at most 1"),
        ("power", 0.0, "power is 0.0; it must be above 0"),
        ("momentum", 1.0, "momentum is 1.0; it must be from 0 to below 1"),
        ("weight_decay", -0.1, "weight_decay is -0.1; it must be at least 0"),
        ("label_smoothing", float("nan"), "label_smoothing is nan; it must be from 0 to below 1"),
        ("statistics_every", -1, "statistics_every is -1; it must be an integer of at least 0"),
        ("statistics_every", 0.5, "statistics_every is 0.5; it must be an integer"),
        ("statistics_every", 10, "statistics_every is 10; it must be 0 where the precision is float32"),
        ("checkpoint_every", -1, "checkpoint_every is -1; it must be an integer of at least 0"),
        ("checkpoint_every", 2.0, "checkpoint_every is 2.0; it must be an integer"),
        ("keep_checkpoints", 0, "keep_checkpoints is 0; it must be an integer of at least 1"),
        ("export_weights", "int8", "export_weights is 'int8'; it must be one of float32, dfp16"),
        ("epoch", 3, "no such field: epoch; the fields are precision, seed, model, .*, export_weights"),
    ],
)
def test_a_wrong_field_or_value_is_an_error_that_names_the_valid_ones(make_config, field, value, message):
    with pytest.raises(ValueError, match=message):
        make_config(**{field: value})


@pytest.mark.parametrize("boundaries", [(), 0.5, ("a",), (0.5, 0.4), (0.5, 1.0), (0.1, 0.5)])
def test_wrong_boundaries_are_an_error_where_they_count(make_config, boundaries):
    changes = {"boundaries": boundaries, "warmup": 0.1}
    make_config(**changes, schedule="cosine")
    wanted = "it must be a tuple of one or more ascending shares of all updates, above warmup and below 1"
    with pytest.raises(ValueError, match=f"boundaries is {re.escape(repr(boundaries))}; {wanted}"):
        make_config(**changes, schedule="step")


def test_a_missing_field_is_an_error():
    with pytest.raises(ValueError, match="missing field: seed, model"):
        TrainConfig.from_dict({"precision": "float32"})


def test_precisions():
    def fun(images, kernel, x, first, last):
        layout = ("NHWC", "HWIO", "NHWC")
        convolved = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=layout)
        return convolved, x @ first, x @ last

    # Large enough to gain from DFP16, or the default policy would keep them in float32.
    shapes = ((8, 16, 16, 32), (3, 3, 32, 64), (512, 512), (512, 512), (512, 512))
    operands = [normal(seed, *shape) / 4 for seed, shape in enumerate(shapes)]
    outputs = {precision: with_precision(fun, precision)(*operands) for precision in PRECISIONS}

    def exact(precision: str) -> list[bool]:
        """Which outputs are those of float32 to the last bit."""
        pairs = zip(outputs[precision], outputs["float32"], strict=True)
        return [np.array_equal(output, expected) for output, expected in pairs]

    assert with_precision(fun, "float32") is fun
    assert with_precision(fun, "bfloat16") is fun  # the model has its dtype
    assert model_dtype("bfloat16") == jnp.bfloat16
    assert {model_dtype(precision) for precision in PRECISIONS if precision != "bfloat16"} == {jnp.float32}
    assert exact("dfp16") == [False, False, False]
    assert exact("dfp16_paper") == [True, False, True]  # the first convolution and the last dot product
    for output, expected in zip(outputs["dfp16"], outputs["float32"], strict=True):
        np.testing.assert_allclose(output, expected, atol=3e-3)  # the convolution is Winograd's
    with pytest.raises(ValueError, match="it must be one of float32, bfloat16, dfp16, dfp16_stochastic,"):
        with_precision(fun, "fp8")


@pytest.mark.parametrize("precision", ["float32", "dfp16"])
def test_the_script_trains_in_both_precisions(precision, data_dir, tmp_path):
    tiny = ["--config.train_split=train[:64]", "--config.test_split=test[:32]", "--config.epochs=1"]
    seeds = ["--config.batch_size=32", "--config.seed=3,4"]
    where = [f"--config.data_dir={data_dir}", f"--workdir={tmp_path}"]
    finished = run_script(*tiny, *seeds, f"--config.precision={precision}", *where, outputs=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert [(line["precision"], line["seed"]) for line in _metrics(tmp_path)] == [
        (precision, 3),
        (precision, 4),
    ]
    assert (tmp_path / "result.md").read_text().splitlines()[0] in finished.stdout


def test_the_digits_are_trained_in_dfp16_unless_said_otherwise():
    assert 'config.precision = "dfp16"' in (ROOT / "configs" / "digits.py").read_text()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.precison=dfp16", "no such field: precison; the fields are precision, seed"),
        ("--config.precision=fp8", "it must be one of float32, bfloat16, dfp16, dfp16_stochastic,"),
        ("--config.epochs=many", "many"),
        (
            "--config.dataset=imagenet2012",
            "train.py: imagenet2012 is not prepared in the folder of",
        ),
        (
            "--config.dataset=image_folder",
            "train.py: data_dir is None; image_folder expects data_dir",
        ),
        ("--config.train_split=trian", "train.py: Unknown split 'trian'"),
        ("--eval_only", "train.py: --eval_only needs --workdir=DIR of a run, or --checkpoint=PATH"),
        (
            "--eval_only --workdir=MISSING",
            "--workdir=MISSING does not exist; --eval_only needs that",
        ),
        (
            "--checkpoint=A",
            "train.py: --checkpoint is for --eval_only; to train from it, say --init_from=PATH",
        ),
        ("--eval_only --checkpoint=A --profile", "train.py: --eval_only trains nothing; leave out"),
        ("--profile", "train.py: --profile needs --workdir=DIR, where it writes the profile"),
        ("--init_from=MISSING", "/MISSING does not exist; give WORKDIR/weights/seed_N, "),
    ],
)
def test_the_script_stops_at_a_wrong_argument(argument, message, data_dir, tmp_path):
    where = [] if "--config.dataset" in argument else [f"--config.data_dir={data_dir}"]
    finished = run_script(*argument.split(), *where, outputs=tmp_path)
    assert finished.returncode != 0
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("started", ["forked", pytest.param("by the launcher", marks=pytest.mark.slow)])
def test_the_script_stops_at_sigterm_and_its_checkpoint_is_evaluated(started, data_dir, tmp_path):
    tiny = ["--config.train_split=train[:32]", "--config.test_split=test[:32]", "--config.precision=float32"]
    tiny.append("--config.batch_size=16")
    where = [f"--config.data_dir={data_dir}", f"--workdir={tmp_path}"]
    long = ["--config.epochs=10000", "--profile", *where]
    if started == "forked":
        tiny.append(f"--config.model={MODEL}")
        process = start_script(*tiny, *long, outputs=tmp_path)
    else:
        command = [sys.executable, "train.py", "--config", "configs/digits.py", *tiny, *long]
        with open(tmp_path / "stdout", "w") as stdout, open(tmp_path / "stderr", "w") as stderr:
            process = subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=stderr)
    wait_for_end = process.join if started == "forked" else process.wait
    printed = tmp_path / "stdout"
    # More than the steps that are profiled have been made.
    while not (printed.exists() and "epoch   5" in printed.read_text()):
        time.sleep(0.1)
        assert Path(f"/proc/{process.pid}/fd/1").exists(), (tmp_path / "stderr").read_text()
    os.kill(process.pid, signal.SIGTERM)
    wait_for_end(timeout=400)
    code = process.exitcode if started == "forked" else process.returncode
    assert code == 128 + signal.SIGTERM
    errors = (tmp_path / "stderr").read_text()
    step = checkpoint_steps(tmp_path / "checkpoints" / "seed_0")[-1]
    line = f"train.py: stopped by SIGTERM after step {step} of seed 0, saved: the same command goes on"
    assert f"{line} from there" in errors.splitlines()
    assert "Traceback" not in errors
    assert f"profile of 5 steps in {tmp_path}/profile: open it with" in printed.read_text()
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))
    assert list(tmp_path.glob("profile/**/perfetto_trace.json.gz"))

    finished = run_script(*tiny, "--eval_only", *where, outputs=tmp_path)
    assert finished.returncode == 0, finished.stderr
    header, _, row = finished.stdout.strip().splitlines()
    assert [cell.strip() for cell in header.split("|")][1:6] == [
        "precision",
        "weights",
        "test accuracy",
        "top-5",
        "test loss",
    ]
    assert f"{tmp_path}/checkpoints/seed_0 " in row


def test_a_run_that_is_shorter_than_a_profile_says_so(make_config, tmp_path):
    console = Console(file=io.StringIO(), width=120)
    with Report(console, tmp_path) as report:
        train(make_config(model=MODEL, epochs=1, batch_size=64), report, profile=True)
    assert "no profile: it begins after 3 steps, and 2 were made" in console.file.getvalue()
    assert not (tmp_path / "profile").exists()


def test_the_bar_shows_where_a_run_is(make_config, tmp_path):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with Report(console) as report:
        train(make_config(model=MODEL), report)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert re.search(
        r"seed 0  epoch 2/2 ━+ 8/8 loss \d\.\d{4}  accuracy \d+\.\d\d%  lr \d\S*  \d+ images/s 0:00:00",
        shown,
    )
