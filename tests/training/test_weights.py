import io
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console
from tiny import MODEL

import dfpjax
from dfpjax.training import CheckpointError, Report, evaluate, load_weights, save_weights, train
from dfpjax.training.weights import saved_format


@pytest.fixture
def variables() -> dict:
    random = np.random.default_rng(0)
    kernels = {f"Conv_{i}": random.normal(size=(3, 3, 64, 64)).astype(np.float32) for i in range(4)}
    params = {name: {"kernel": kernel, "bias": kernel[0, 0, 0]} for name, kernel in kernels.items()}
    return {"params": params, "batch_stats": {"BatchNorm_0": {"var": np.float32([1e-9, 1e9])}}}


def _train(config, workdir: Path, **options) -> tuple[list, str]:
    console = Console(file=io.StringIO(), width=120)
    with Report(console, workdir) as report:
        return train(config, report, **options), console.file.getvalue()


def _evaluate(config, *paths: Path) -> tuple[list, str]:
    console = Console(file=io.StringIO(), width=40)
    with Report(console) as report:
        return evaluate(config, report, *paths), console.file.getvalue()


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_float32_weights_are_plain_orbax(variables, tmp_path):
    save_weights(tmp_path / "weights", variables, "float32")
    assert saved_format(tmp_path / "weights") == "float32"
    restored = ocp.StandardCheckpointer().restore(tmp_path / "weights")
    jax.tree.map(np.testing.assert_array_equal, restored, variables)
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "weights", variables), variables)


def test_dfp16_weights_have_half_the_size_and_the_values_that_operations_read(variables, tmp_path):
    for weight_format in ("float32", "dfp16"):
        save_weights(tmp_path / weight_format, variables, weight_format)
    assert saved_format(tmp_path / "dfp16") == "dfp16"
    assert 0.4 < _bytes(tmp_path / "dfp16") / _bytes(tmp_path / "float32") < 0.58
    loaded = load_weights(tmp_path / "dfp16", variables)
    for name, layer in loaded["params"].items():
        kernel = variables["params"][name]["kernel"]
        np.testing.assert_allclose(layer["kernel"], kernel, rtol=0, atol=np.abs(kernel).max() * 2**-15)
        once, twice = (dfpjax.quantize(x, blocks=dfpjax.Blocks()) for x in (kernel, layer["kernel"]))
        np.testing.assert_array_equal(twice.mantissa, once.mantissa)
        np.testing.assert_array_equal(layer["bias"], variables["params"][name]["bias"])
    jax.tree.map(np.testing.assert_array_equal, loaded["batch_stats"], variables["batch_stats"])


BLOCKS = dfpjax.Blocks(rows=2, columns=16)


@pytest.fixture
def in_blocks(tmp_path) -> tuple[Path, dict]:
    """Where weights with exponents of blocks are, and the weights."""
    kernel = np.random.default_rng(0).normal(size=(3, 5, 20)).astype(np.float32)
    kernel[1] *= 2.0**-20
    variables = {"params": {"Conv_0": {"kernel": kernel, "bias": kernel[0, 0]}}, "batch_stats": {}}
    save_weights(tmp_path / "weights", variables, "dfp16", BLOCKS)
    return tmp_path / "weights", variables


def test_weights_with_exponents_of_blocks(in_blocks):
    path, variables = in_blocks
    assert saved_format(path) == "dfp16"
    kernel = variables["params"]["Conv_0"]["kernel"]
    stored = ocp.StandardCheckpointer().restore(path)["params"]["Conv_0"]
    assert stored["kernel"]["exponent"].shape == BLOCKS.counts(kernel.shape)
    np.testing.assert_array_equal(stored["kernel"]["blocks"], [BLOCKS.rows, BLOCKS.columns])
    loaded = load_weights(path, variables)["params"]["Conv_0"]
    np.testing.assert_array_equal(loaded["kernel"], dfpjax.quantize(kernel, blocks=BLOCKS))
    np.testing.assert_allclose(loaded["kernel"][1], kernel[1], rtol=0, atol=np.abs(kernel[1]).max() * 2**-15)
    np.testing.assert_array_equal(loaded["bias"], variables["params"]["Conv_0"]["bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exponent": np.zeros((3, 2, 2), np.int32)},
         r"exponent must have shape \(3, 3, 2\).*got shape \(3, 2, 2\)"),
        ({"blocks": np.int32([4, 16])}, r"exponent must have shape \(3, 2, 2\).*got shape \(3, 3, 2\)"),
        ({"blocks": np.int32([3, 16])}, "rows must be a power of two"),
        ({"blocks": np.int32([4])}, r"blocks must be the rows and columns of a block, .*got int32\[1\]"),
        ({"blocks": None}, r"exponent must broadcast to the mantissa's shape \(3, 5, 20\)"),
    ],
    ids=["exponents", "size", "no size", "one number", "missing"],
)  # fmt: skip
def test_blocks_and_exponents_that_do_not_belong_together_are_named(in_blocks, change, message):
    path, variables = in_blocks
    tree = ocp.PyTreeCheckpointHandler().restore(path)
    kernel = tree["params"]["Conv_0"]["kernel"] | change
    tree["params"]["Conv_0"]["kernel"] = {name: leaf for name, leaf in kernel.items() if leaf is not None}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree, force=True)
    with pytest.raises(
        CheckpointError, match=f"params/Conv_0/kernel in .*weights.*{message}.*; write the weights"
    ):
        load_weights(path, variables)


def test_weights_replace_those_that_were_there(variables, tmp_path):
    save_weights(tmp_path, variables, "dfp16")
    save_weights(tmp_path, variables, "float32")
    assert saved_format(tmp_path) == "float32"


def test_weights_that_do_not_fit_are_named(variables, tmp_path):
    save_weights(tmp_path, variables, "float32")
    like = jax.tree.map(lambda leaf: leaf, variables)
    like["params"]["Conv_0"]["kernel"] = np.zeros((3, 3, 64, 32))
    like["params"]["Dense_0"] = {"kernel": np.zeros((2, 2))}
    del like["params"]["Conv_1"]["bias"]
    message = (
        r"are not of this model and dataset: params/Conv_0/kernel is \[3, 3, 64, 64\] and should be"
        r" \[3, 3, 64, 32\], params/Dense_0/kernel is missing, params/Conv_1/bias is not expected; check"
    )
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path, like)


def test_a_place_without_weights_is_an_error(variables, tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights; give WORKDIR/weights/seed_N, WORKDIR/check"):
        load_weights(tmp_path, variables)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_weights(tmp_path / "missing", variables)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "other", {"a": np.zeros(3)})
    with pytest.raises(CheckpointError, match="is a checkpoint of another program"):
        load_weights(tmp_path / "other", variables)


@pytest.mark.slow
def test_a_run_leaves_weights_that_are_evaluated_and_started_from(make_config, tmp_path):
    settings = {"model": MODEL, "train_split": "train[:512]", "warmup": 0.0}
    (result,), _ = _train(make_config(**settings, export_weights="dfp16"), tmp_path / "first")
    weights, checkpoints = tmp_path / "first" / "weights" / "seed_0", tmp_path / "first" / "checkpoints"
    (exact, newest, rounded), printed = _evaluate(
        make_config(**settings), checkpoints / "seed_0" / "32", checkpoints / "seed_0", weights
    )
    assert (exact.test_loss, exact.test_accuracy) == (result.test_loss, result.test_accuracy)
    assert newest.test_loss == exact.test_loss
    assert rounded.test_loss == pytest.approx(exact.test_loss, rel=1e-3)
    assert rounded.test_accuracy == exact.test_accuracy
    assert rounded.test_top5_accuracy == exact.test_top5_accuracy
    for each in (exact, newest, rounded):
        assert f"| float32   | {each.weights} " in printed
    for precision in ("dfp16", "bfloat16"):
        ((other,), _) = _evaluate(make_config(**settings, precision=precision), weights)
        assert other.test_loss == pytest.approx(exact.test_loss, rel=0.05)

    # Weights in another format, from a finished run.
    _train(make_config(**settings), tmp_path / "first")
    assert saved_format(weights) == "float32"

    tuned = make_config(**settings, epochs=1, learning_rate=1e-6)
    (again,), _ = _train(tuned, tmp_path / "second", init_from=weights)
    assert again.test_accuracy == pytest.approx(result.test_accuracy, abs=0.05)
    with pytest.raises(CheckpointError, match="are not of this model and dataset: params/Conv_0/"):
        _train(make_config(model="vgg_digits"), tmp_path / "third", init_from=weights)


def test_evaluation_writes_nothing(make_config, tmp_path):
    config = make_config()
    with pytest.raises(CheckpointError, match="does not exist"):
        _evaluate(config, tmp_path / "workdir" / "checkpoints" / "seed_0")
    assert not list(tmp_path.iterdir())
