"""The fidelity benchmark measures what it claims to measure."""

import dataclasses
import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import oracle
import pytest

from benchmarks.common.operations import PASSES, ours_and_jax
from benchmarks.common.shapes import Conv, Dot, Einsum
from benchmarks.fidelity import __main__ as fidelity
from benchmarks.fidelity import photographs, precisions, results
from benchmarks.fidelity.captured import Training
from benchmarks.fidelity.networks import NETWORKS, captured, classifier_loss
from benchmarks.fidelity.tensors import random_operands
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.training.models.resnet import Bottleneck, ResNet

CASES = (
    Conv(2, 16, 8, 3, 9),
    Conv(2, 5, 8, 7, 12, 2),
    Conv(2, 16, 8, 1, 8, 2),
    Conv(1, 4, 6, 3, 8, 2),
    Dot(m=64, k=256, n=48),
    Dot(m=6, k=40, n=10, batch=3),
    Einsum(equation="ntc,cd->ntd", lhs=(2, 6, 40), rhs=(40, 10)),
    Einsum(equation="nqhc,nkhc->nhqk", lhs=(2, 5, 3, 8), rhs=(2, 7, 3, 8)),
)


def normal(case):
    operands = random_operands("normal", case)
    return operands.x, operands.w, operands.dy


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_truth_agrees_with_jax_in_float64(case):
    _, operation = ours_and_jax(case)
    truth = precisions.exact_passes(case, *normal(case))
    with jax.enable_x64(True):
        x, w, dy = (jnp.asarray(operand, jnp.float64) for operand in normal(case))
        y, transpose = jax.vjp(operation, x, w)
        peers = dict(zip(PASSES, (y, *transpose(dy)), strict=True))
        assert y.dtype == jnp.float64
        for which in PASSES:
            assert oracle.relative_error(truth[which], peers[which]) < 1e-14


def test_a_grouped_convolution_has_no_truth():
    case = Conv(1, 4, 4, 3, 8, groups=4)
    with pytest.raises(ValueError, match=r"exact_passes: .* is grouped"):
        precisions.exact_passes(case, *normal(case))


@pytest.mark.parametrize("case", (CASES[0], CASES[4]), ids=lambda case: case.name)
def test_errors_on_normal_data_are_in_the_order_of_the_bits(case):
    for row in fidelity.measure(random_operands("normal", case)):
        ordered = [row.error(name) for name in ("float32", "DFP-16", "DFP-14", "DFP-12", "DFP-8")]
        assert all(2 * better < worse for better, worse in itertools.pairwise(ordered))
        # Two bits are a factor of four, up to chance: the tensors are small and their errors random.
        assert 2.5 < ordered[2] / ordered[1] < 6 and 2.5 < ordered[3] / ordered[2] < 6
        assert ordered[1] < row.error("DFP-16 stochastic") < 3 * ordered[1]
        assert row.error("bfloat16") < row.error("bfloat16 results")
        assert row.gain() == row.error("bfloat16") / row.error("DFP-16") > 16


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.name)
def test_bfloat16_is_of_the_operands_alone(case):
    operands = normal(case)
    rounded = [operand.astype(ml_dtypes.bfloat16).astype(np.float32) for operand in operands]
    expected = precisions.exact_passes(case, *rounded)
    actual = precisions.passes(case, precisions.BFLOAT16, *operands)
    for which in PASSES:
        assert oracle.relative_error(actual[which], expected[which]) < 1e-6


def test_dynamic_fixed_point_quantizes_every_operand_of_every_pass():
    case, precision = CASES[1], precisions.Precision("DFP-8", bits=8)
    rounded = []
    for operand in normal(case):
        mantissa, exponent = oracle.quantize(operand, 8)
        rounded.append(np.ldexp(mantissa.astype(np.float64), exponent))
    expected = precisions.exact_passes(case, *rounded)
    actual = precisions.passes(case, precision, *normal(case))
    for which in PASSES:
        assert oracle.relative_error(actual[which], expected[which]) < 1e-6


@pytest.mark.parametrize("case", (CASES[1], CASES[6]), ids=lambda case: case.name)
def test_blocks_quantize_every_operand_of_every_pass(case):
    blocks = Blocks(rows=2, columns=16)
    precision = precisions.Precision("blocks", bits=16, granularity="block", blocks=blocks)

    def rounded(operand):
        outer, rows, columns = blocks.view(operand.shape)
        out = np.zeros((outer, rows, columns))
        view = operand.reshape(outer, rows, columns)
        high, wide = blocks.size(operand.shape)
        for o, i, j in np.ndindex(*blocks.counts(operand.shape)):
            block = np.s_[o, high * i : high * (i + 1), wide * j : wide * (j + 1)]
            mantissa, exponent = oracle.quantize(view[block])
            out[block] = np.ldexp(mantissa.astype(np.float64), exponent)
        return out.reshape(operand.shape)

    operands = random_operands("Student's t, 3 degrees", case)
    operands = operands.x, operands.w, operands.dy
    truth = precisions.exact_passes(case, *operands)
    expected = precisions.exact_passes(case, *map(rounded, operands))
    actual = precisions.passes(case, precision, *operands)
    for which in PASSES:
        # The kernels round once more where they bring blocks to common exponents.
        of_storage = oracle.relative_error(expected[which], truth[which])
        assert of_storage < oracle.relative_error(actual[which], truth[which]) < 4 * of_storage


def test_blocks_keep_what_one_exponent_loses():
    for row in fidelity.measure(random_operands("log-normal", Dot(m=64, k=256, n=48))):
        assert row.gain(precision="DFP-16 blocks") > 1.2 * row.gain()
        if row.which == "fprop":
            assert row.error("DFP-16 blocks, stochastic dy") == row.error("DFP-16 blocks")
        else:
            assert row.error("DFP-16 blocks, stochastic dy") > row.error("DFP-16 blocks")


def test_winograd_algorithms_lose_some_of_the_precision():
    suits, too_few = Conv(1, 64, 64, 3, 8), Conv(1, 32, 64, 3, 8)
    rows = fidelity.measure(random_operands("ReLU of normal", suits))
    for row in rows:
        names = ("DFP-16 blocks", "DFP-16 blocks, winograd2", "DFP-16 blocks, winograd4", "bfloat16")
        direct, two, four, bfloat16 = map(row.error, names)
        assert direct < four and two < four < bfloat16 / 4
    others = fidelity.measure(random_operands("normal", too_few))
    assert all(set(row.errors) == {p.name for p in precisions.PRECISIONS} for row in others)
    header, rule, *lines = results.algorithms(rows + others).splitlines()
    assert [line.split(" | ")[:3] for line in lines] == [["| ReLU of normal", w, "1"] for w in PASSES]
    assert header.count("|") == rule.count("|") == lines[0].count("|") == 10
    gain = results.gain_text(rows[0].gain(precision="DFP-16 blocks, winograd4"))
    assert lines[0].endswith(f"| {gain} | {gain} |")


def test_what_fills_its_range_less_gains_less():
    normal_rows, heavy = (fidelity.measure(random_operands(f, CASES[4])) for f in ("normal", "log-normal"))
    for one, other in zip(normal_rows, heavy, strict=True):
        assert one.fill > 2 * other.fill
        assert one.gain() > 2 * other.gain()


def test_measures():
    truth, actual = np.array([[3.0, 0.0], [4.0, 0.0]]), np.array([[3.0, 1.0], [5.0, 0.0]])
    assert precisions.relative_error(actual, truth) == pytest.approx(math.sqrt(2) / 5)
    assert precisions.largest_error(actual, truth) == pytest.approx(1 / 2.5)
    assert precisions.worst_channel_error(actual, truth, -1) == pytest.approx(1 / 5)
    assert precisions.worst_channel_error(actual, truth, 0) == pytest.approx(1 / 3)
    assert precisions.rms_over_max(truth) == pytest.approx(2.5 / 4)
    assert math.isnan(precisions.relative_error(actual, 0 * truth))
    assert math.isnan(precisions.rms_over_max(0 * truth))


def example_row(**changes):
    errors = {p.name: {"relative": 1e-3, "largest": 1e-2, "channel": 1e-1} for p in precisions.PRECISIONS}
    errors["bfloat16"] = {"relative": 0.02, "largest": 0.5, "channel": 0.1}
    values = {"family": "f", "layer": "l", "operation": "o", "which": "fprop", "errors": errors}
    return results.Row(**{**values, "rms_over_max": (0.1, 0.1), "lost": (0.0, 0.25), **changes})


def test_tables():
    rows = [example_row(), example_row(which="dgrad", rms_over_max=(0.3, 0.05))]
    assert rows[0].fill == pytest.approx(0.1)
    assert rows[0].gain() == pytest.approx(20) and rows[0].gain("largest") == pytest.approx(50)
    first, _, *lines = results.summary(rows).splitlines()
    assert len(lines) == 2 and all(line.count("|") == first.count("|") for line in lines)
    assert lines[0].startswith("| f | fprop | 0.100 |") and lines[0].endswith("| 60 | 20 | 20 | 50 | 1.0 |")
    errors = {**rows[0].errors, "DFP-16 blocks": {"relative": 1e-4}}
    rows.append(example_row(errors=errors))
    lines = results.granularities(rows).splitlines()[2:]
    assert lines == [
        "| f | fprop | 2 | 20 | 20 | 63 | 20 | 20 | 20 |",
        "| f | dgrad | 1 | 20 | 20 | 20 | 20 | 20 | 20 |",
    ]
    assert "| l | o | dgrad | 0.300 | 0.050 |" in results.every_row(rows)


def test_a_chart_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    results.chart([example_row(), example_row(family="g")], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


# --- tensors of a network -------------------------------------------------------------------------

LAYERS = ["Conv_0", "Bottleneck_0/Conv_1", "Bottleneck_0/Conv_2", "Dense_0"]


def test_captured_operands_are_those_of_the_step():
    model = ResNet(classes=5, stages=(1,), block=Bottleneck, width=4)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((3, 32, 32, 3)).astype(np.float32), np.array([0, 3, 1])
    variables = model.init(jax.random.key(0), images, train=False)
    loss_of = functools.partial(classifier_loss, model)
    training = Training(loss_of, variables, LAYERS, (images, labels), optax.sgd(0.1, momentum=0.9))
    training.step(images, labels)
    variables = training.variables
    loss = training.step(images, labels)

    def peer(params):
        updated = {**variables, "params": params}
        logits, _ = model.apply(updated, images, train=True, mutable=["batch_stats"])
        return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(3), labels])

    expected_loss, gradients = jax.jit(jax.value_and_grad(peer))(variables["params"])
    assert loss == pytest.approx(float(expected_loss), rel=1e-5)
    operands = training.operands("a family")
    assert [o.layer for o in operands] == LAYERS
    assert [o.case.name for o in operands] == [
        "3→4 k7 s2 32²",
        "4→4 k3 8²",
        "4→16 k1 8²",
        "dense 3×16×5",
    ]
    np.testing.assert_array_equal(operands[0].x, images)
    for o in operands:
        kernel, gradient = variables["params"], gradients
        for part in o.layer.split("/"):
            kernel, gradient = kernel[part], gradient[part]
        np.testing.assert_array_equal(o.w, kernel["kernel"])
        wgrad = precisions.exact_passes(o.case, o.x, o.w, o.dy)["wgrad"]
        assert np.abs(gradient["kernel"]).max() > 0
        assert oracle.relative_error(wgrad, gradient["kernel"]) < 1e-4


def test_captured_steps_of_a_scan_are_those_of_the_scan():
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal((4, 4)).astype(np.float32) for name in ("w", "u")}
    texts = rng.standard_normal((3, 8, 4)).astype(np.float32)

    def loss(variables, step, texts):
        w, u = variables["params"]["w"], variables["params"]["u"]

        def cell(state, x):
            state = jnp.tanh(state @ u + x @ w)
            return state, state

        with jax.named_scope("Model/Cell"):
            return jnp.sum(jax.lax.scan(cell, jnp.ones((3, 4)), texts.swapaxes(0, 1))[1] ** 2), {}

    training = Training(loss, {"params": params}, ["Cell", "Cell #2"], (texts,), optax.sgd(0.0))
    training.step(texts)
    operands = training.operands("a family")
    assert [o.layer for o in operands] == [
        f"Cell{number}, step {step} of 8" for number in ("", " #2") for step in (2, 4, 6, 8)
    ]
    w, u = params["w"].astype(float), params["u"].astype(float)
    states = [np.ones((3, 4))]
    for t in range(8):
        states.append(np.tanh(states[-1] @ u + texts[:, t] @ w))
    dy, dys = np.zeros((3, 4)), []
    for t in reversed(range(8)):
        dy = (dy @ u.T + 2 * states[t + 1]) * (1 - states[t + 1] ** 2)
        dys.insert(0, dy)
    for o, t in zip(operands, (1, 3, 5, 7) * 2, strict=True):
        np.testing.assert_allclose(o.x, texts[:, t] if "#2" in o.layer else states[t], rtol=1e-5)
        np.testing.assert_array_equal(o.w, params["w" if "#2" in o.layer else "u"])
        np.testing.assert_allclose(o.dy, dys[t], rtol=1e-4, atol=1e-5)


def test_captured_products_have_the_axes_that_the_program_gives_them():
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal((2, 5, 3, 4)).astype(np.float32) for name in ("q", "k")}
    weights = rng.standard_normal((2, 3, 5, 5)).astype(np.float32)

    def loss(variables, step, weights):
        with jax.named_scope("Model"):
            scores = jnp.einsum("nqhc,nkhc->nhqk", variables["params"]["q"], variables["params"]["k"])
        return jnp.sum(weights * scores), {}

    layer = "nqhc,nkhc->nhqk"
    training = Training(loss, {"params": params}, [layer], (weights,), optax.sgd(0.0))
    training.step(weights)
    (operands,) = training.operands("a family")
    assert operands.case == Einsum(equation="abcd,aecd->acbe", lhs=(2, 5, 3, 4), rhs=(2, 5, 3, 4))
    np.testing.assert_array_equal(operands.x, params["q"])
    np.testing.assert_array_equal(operands.w, params["k"])
    np.testing.assert_array_equal(operands.dy, weights)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_layers_that_are_looked_at(name):
    network = NETWORKS[name]
    if network.reads_text:
        example, arguments = jax.ShapeDtypeStruct((2, 8), jnp.int32), {}
    else:
        example, arguments = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32), {"train": False}
    for model, layers in ((network.model, network.layers), (network.quick, network.quick_layers)):
        module = model(10)

        def loss(variables, step, example, module=module):
            return jnp.sum(module.apply(variables, example, **arguments)), {}

        variables = jax.eval_shape(functools.partial(module.init, **arguments), jax.random.key(0), example)
        training = Training(loss, variables, layers, (example,), optax.identity())
        assert set(training.cases) == set(layers)


def test_training_that_diverges_is_an_error():
    network = dataclasses.replace(NETWORKS["vgg16"], learning_rate=1e30, quick_layers=["Dense_1"])
    found = captured(network, quick=True, batch=1, image=16, steps=5, say=str)
    with pytest.raises(
        ValueError, match=r"VGG-16 diverges at step \d; give its Network a lower learning_rate"
    ):
        list(found)


def test_layers_that_cannot_be_captured_are_refused():
    def loss(variables, step, images):
        return jnp.sum(nn.Conv(4, (3, 3), padding=((0, 1), (0, 1))).apply(variables, images)), {}

    images = np.zeros((1, 8, 8, 3), np.float32)
    variables = nn.Conv(4, (3, 3)).init(jax.random.key(0), images)
    how = {"batch": (images,), "optimizer": optax.sgd(0.1)}
    with pytest.raises(ValueError, match=r"no convolution or dot product Conv_1, BatchNorm_0\b"):
        Training(loss, variables, ["Conv_1", "BatchNorm_0"], **how)
    inside = jax.named_call(loss, name="Model")
    with pytest.raises(ValueError, match=r"layer Conv makes .* choose convolutions in NHWC"):
        Training(inside, variables, ["Conv"], **how)


def test_dot_products_in_another_order_are_refused():
    with pytest.raises(ValueError, match=r"Einsum: no dot product has its result's axes as 'ab,bc->ca' says"):
        Einsum(equation="ab,bc->ca", lhs=(2, 3), rhs=(3, 4))


def test_batches_are_crops_of_the_photographs():
    plain = [np.full((40, 60, 3), value, np.uint8) for value in (0, 51, 255)]
    images, labels = next(photographs.batches(plain, batch=7, size=32))
    assert images.shape == (7, 32, 32, 3) and images.dtype == np.float32
    assert len(set(labels)) > 1
    for image, label in zip(images, labels, strict=True):
        expected = (np.array([0, 0.2, 1])[label] - photographs.MEAN) / photographs.DEVIATION
        np.testing.assert_allclose(image, np.broadcast_to(expected, image.shape), atol=1e-5)
    again, _ = next(photographs.batches(plain, batch=7, size=32))
    np.testing.assert_array_equal(images, again)


def test_photographs_are_real():
    found = photographs.photographs()
    assert {"china", "flower"} <= set(found)
    for photo in found.values():
        assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3
        assert photo.std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--steps=1"], "--steps at least 2"), (["--batch=-1"], "--batch")]
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        fidelity.parse(arguments)
    assert message in capsys.readouterr().err
