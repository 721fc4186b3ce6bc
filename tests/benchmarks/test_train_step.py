"""The benchmark of whole steps: it attributes time to classes of operations, and workers follow commands."""

import functools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfpjax
from benchmarks.train_step import __main__ as train_step
from benchmarks.train_step import breakdown, hlo, results, roofline, service
from benchmarks.train_step.networks import (
    NETWORKS,
    Network,
    infer,
    initial_state,
    random_batch,
    with_frozen_weights,
)
from benchmarks.train_step.results import Row
from dfpjax.training.models import CharLSTM
from dfpjax.training.state import train_step as training_step

FOLDER = Path(service.__file__).parent


def small_step(w, dense, images):
    """A step of a small network that contains every class of operation."""
    policy = dfpjax.Policy(
        default=dfpjax.OpConfig(force=True), rules=[dfpjax.Rule("classifier", None)], strict=False
    )

    def loss(w, dense):
        x = jax.lax.conv_general_dilated(
            images, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = nn.max_pool(jnp.tanh(x), (2, 2), strides=(2, 2))
        with jax.named_scope("classifier"):
            x = x.reshape(len(x), -1) @ dense
        return jnp.sum((x - jnp.mean(x, 0)) ** 2)

    grads = jax.grad(dfpjax.mixed_precision(loss, policy=policy), (0, 1))(w, dense)
    return w - 0.1 * grads[0], dense - 0.1 * grads[1]


@pytest.fixture(scope="module")
def small():
    """The compiled step and its arguments."""
    random = np.random.default_rng(0)
    shapes = (3, 3, 16, 32), (8 * 8 * 32, 10), (8, 16, 16, 16)
    arguments = [jnp.asarray(random.standard_normal(shape, np.float32)) for shape in shapes]
    return jax.jit(small_step).lower(*arguments).compile(), arguments


def test_every_operation_has_its_class(small):
    program = hlo.parse(small[0].as_text())
    entry = list(program.computations.values())[-1]
    of_class = {}
    for instruction in program.instructions.values():
        of_class.setdefault(breakdown.classify(instruction, program), []).append(instruction)
    kernels = of_class[breakdown.KERNELS]
    assert len(kernels) == 2 and all(i.opcode == "custom-call" for i in kernels)  # fprop and wgrad
    assert {breakdown.PLAIN, breakdown.POOLING} <= of_class.keys()
    computing = [i for i in of_class[breakdown.MANTISSAS] if i.opcode in ("fusion", "custom-call")]
    mantissas = [i for i in computing if i.name in entry and "s16" in i.shape]
    shapes = (3, 3, 16, 32), (8, 16, 16, 16), (8, 16, 16, 32)
    numbers, exponents = (sum(map(math.prod, of)) for of in (shapes, map(dfpjax.Blocks().counts, shapes)))
    assert sum(i.bytes for i in mantissas) == 2 * numbers + 4 * exponents
    updates = [i for i in of_class[breakdown.OPTIMIZER] if i.name in entry]
    assert {i.bytes for i in updates} >= {4 * 3 * 3 * 16 * 32, 4 * 8 * 8 * 32 * 10}


def test_the_classes_add_up_to_the_step(small):
    compiled, arguments = small
    measured = breakdown.measure(compiled, lambda: jax.block_until_ready(compiled(*arguments)), count=2)
    classes = measured["classes"]
    assert sum(c["seconds"] for c in classes.values()) == pytest.approx(measured["seconds"], rel=1e-6)
    assert classes[breakdown.KERNELS]["seconds"] > 0
    # fprop: mantissas of images and kernel, and the result in float32. wgrad: mantissas of images and of the
    # result's cotangent, and the kernel's gradient in float32.
    images, kernel, result = 8 * 16 * 16 * 16, 3 * 3 * 16 * 32, 8 * 16 * 16 * 32
    assert classes[breakdown.KERNELS]["bytes"] == pytest.approx(
        2 * (images + kernel) + 4 * result + 2 * (images + result) + 4 * kernel, rel=0.01
    )


def test_time_is_divided_among_what_is_under_way():
    intervals = [(10, 30, "a"), (20, 40, "b"), (20, 30, "c"), (45, 70, "a")]
    shares = breakdown.divide(intervals, 0, 60)
    third = 10 / 3
    assert shares == pytest.approx({None: 15, "a": 10 + third + 15, "b": third + 10, "c": third})
    shares = breakdown.divide(intervals, 0, 60, {"b"})
    assert shares == pytest.approx({None: 15, "a": 10 + 15, "b": 20})


HLO = """HloModule m

%inner (p: f32[4,2]) -> s16[4,2] {
  %p = f32[4,2]{1,0} parameter(0)
  ROOT %c = s16[4,2]{1,0} convert(%p), metadata={op_name="jit(f)/jvp()/dfp_quantize/convert"}
}

ENTRY %main (x: f32[4,2]) -> (s16[4,2], pred[3]) {
  %x = f32[4,2]{1,0} parameter(0)
  %copied = f32[4,2]{0,1} copy(%x)
  %f = s16[4,2]{1,0} fusion(%copied), kind=kLoop, calls=%inner
  %k = (s16[4,2]{1,0}, /*index=1*/pred[3]{0}) custom-call(%f, %f), custom_call_target="dfpjax_contract_v1"
  ROOT %g = s16[4,2]{1,0} get-tuple-element(%k), index=0
}
"""


def test_hlo_is_read():
    program = hlo.parse(HLO)
    copied, fusion, call = (program.instructions[name] for name in ("copied", "f", "k"))
    assert (copied.opcode, copied.operands, copied.bytes) == ("copy", ("x",), 32)
    assert fusion.calls == ("inner",) and [i.name for i in program.inside(fusion)] == ["p", "c"]
    assert program.bytes_moved(fusion) == 32 + 16
    assert (call.target, call.bytes, program.bytes_moved(call)) == ("dfpjax_contract_v1", 19, 19 + 16)
    kinds = [breakdown.classify(i, program) for i in (copied, fusion, call)]
    assert kinds == [breakdown.COPIES, breakdown.MANTISSAS, breakdown.KERNELS]


PASS = """HloModule m

ENTRY %main (x: f32[4,2]) -> f32[4,2] {
  %x = f32[4,2]{1,0} parameter(0)
  ROOT %k = f32[4,2]{1,0} custom-call(%x), custom_call_target="TARGET_v1"
}
"""


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("dfpjax_contract", breakdown.KERNELS),
        ("dfpjax_fixed_chain", breakdown.KERNELS),
        ("dfpjax_quantize", breakdown.MANTISSAS),
        ("dfpjax_largest_magnitude", breakdown.MAXIMUM),
        ("dfpjax_moments", breakdown.REDUCTIONS),
        ("dfpjax_paired_sums", breakdown.REDUCTIONS),
        ("dfpjax_rectified_sums", breakdown.REDUCTIONS),
        ("dfpjax_rectified_sum", breakdown.ELEMENTWISE),
        ("dfpjax_rectified_operand", breakdown.PRODUCED),
        ("dfpjax_gradient_operand", breakdown.PRODUCED),
        ("dfpjax_masked_operand", breakdown.PRODUCED),
        ("dfpjax_pooled_operand", breakdown.PRODUCED),
        ("dfpjax_masked_sums", breakdown.REDUCTIONS),
        ("dfpjax_max_pool_gradient", breakdown.POOLING),
        ("dfpjax_local_response_gradient", breakdown.ELEMENTWISE),
        ("another_library", breakdown.PLAIN),
    ],
)
def test_native_passes_have_their_classes(target, kind):
    program = hlo.parse(PASS.replace("TARGET", target))
    assert breakdown.classify(program.instructions["k"], program) == kind


def test_the_bound_has_kernels_at_the_peak_and_the_rest_at_memory_s_speed():
    classes = {breakdown.KERNELS: {"bytes": 5e9}, breakdown.POOLING: {"bytes": 4e9}}
    bounds = roofline.bounds(classes, macs=6e11, peak=3e11, memory=2e9)
    assert bounds == {breakdown.KERNELS: 2, breakdown.POOLING: 2}
    assert roofline.memory_speed(1 << 20, 2) > 1e8


WORKER = """
from service import serve

def prepare(wanted):
    taken = []
    return {"wanted": wanted}, lambda: taken.append(bytearray(1 << 20)), {"taken": lambda: len(taken)}

serve(prepare)
"""


@pytest.mark.parametrize(("mode", "warm_up"), [("train", 1), ("inference", 10)])
def test_a_worker_answers(mode, warm_up):
    requests = ({"mode": mode}, {"do": "taken"}, {"do": "steps", "count": 2}, {"do": "taken"})
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(
        [sys.executable, "-c", WORKER], cwd=FOLDER, input=lines, capture_output=True, text=True, check=True
    )
    facts, before, answer, after = map(json.loads, done.stdout.splitlines())
    assert facts["wanted"] == {"mode": mode} and facts["start_peak_bytes"] > 0
    # The warm-up, then one more step at the beginning of each turn.
    assert (before, after) == (warm_up, warm_up + 3)
    assert len(answer["steps"]) == 2 and answer["peak_bytes"] > 4 << 20
    assert all(step["seconds"] > 0 and step["minor_faults"] >= 0 for step in answer["steps"])


def row(contender: str, seconds: list[float], **more) -> Row:
    fixed = {"network": "resnet50", "mode": "train", "batch": 6, "takes": "images", "allocator": "tuned"}
    sizes = {"peak_bytes": 2 * 10**9, "start_peak_bytes": 3 * 10**9, "parameters": 5, "macs": 4 * 10**9}
    return Row(contender=contender, seconds=seconds, **fixed, **sizes, **more)


def test_the_peer_is_pytorch_eager_or_compiled_whichever_is_faster():
    peers = {
        "JAX float32": 4, "JAX bfloat16": 3, "PyTorch float32": 6, "PyTorch float32 compiled": 5,
        "PyTorch bfloat16": 1, "PyTorch bfloat16 compiled": 1.5,
    }  # fmt: skip
    rows = [row(name, [seconds]) for name, seconds in peers.items()]
    assert results.comparison(rows) == ""
    line = results.comparison([row(results.OURS, [2]), *rows]).splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")[5:-1]]
    assert cells == ["3", "1.5", "2", "1.2 compiled", "6", "2.00", "1.50", "2.50", "0.50"]
    some = [row(results.OURS, [2]), row("JAX float32", [4])]
    assert results.comparison(some).splitlines()[-1].endswith("| 3 | 1.5 |  |  |  | 2.00 |  |  |  |")


def test_tables_and_chart(tmp_path):
    classes = {
        breakdown.KERNELS: {"seconds": 1.5, "bytes": 10**9},
        breakdown.IDLE: {"seconds": 0.5, "bytes": 0},
    }
    measured = {"seconds": 2.0, "macs": 3e9, "peak": 2e9, "memory": 1e9, "classes": classes}
    rows = [row("JAX float32", [9, 6, 7]), row(results.OURS, [2, 2, 5], breakdown=measured)]
    table, _, *broken_down = train_step.show(rows).partition("\n\n")
    cells = [[cell.strip() for cell in line.split("|")[5:-1]] for line in table.splitlines()[2:]]
    assert cells[0] == ["JAX float32", "7.000", "6.000", "0.9", "1", "2.0", "3.0", "3.50"]
    assert cells[1] == ["JAX dfp16", "2.000", "2.000", "3.0", "2", "2.0", "3.0", ""]
    assert "| DFP16 kernels | 1.500 | 75% | 1.00 | 1 | 1.500 |" in broken_down[0]
    results.chart(rows, tmp_path / "chart.png", "title")
    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (["--contenders", "jax-float8"], "no such contender|has jax-float8"),
        (["--batch", "0"], "--batch is 0; it must be at least 1"),
        (["--model", "lenet"], "invalid choice"),
    ),
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        train_step.parse(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_what_is_not_differentiated_is_the_optimizer_s_only_in_training(small):
    assert hlo.parse(small[0].as_text()).differentiates
    arguments = [jnp.ones((64, 64)), jnp.ones(64)]
    forward = jax.jit(lambda x, b: jnp.tanh(x + b) * b).lower(*arguments).compile()
    program = hlo.parse(forward.as_text())
    kinds = {breakdown.classify(i, program) for i in program.instructions.values() if i.opcode == "fusion"}
    assert kinds == {breakdown.ELEMENTWISE}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_a_step(name):
    network = NETWORKS[name]
    inputs, labels = random_batch(network, 2)
    state = jax.eval_shape(lambda: initial_state(network, "float32", inputs))
    step = functools.partial(training_step, label_smoothing=0.0)
    after, metrics = jax.eval_shape(step, state, inputs, labels)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {name: value.shape for name, value in metrics.items()} == dict.fromkeys(metrics, ())
    logits = jax.eval_shape(infer, state, inputs)
    assert logits.shape[:-1] == labels.shape


def test_frozen_weights_give_the_logits_of_float32_ones():
    model = functools.partial(CharLSTM, characters=96, width=64)
    network = Network(model=model, batch=2, takes="texts")
    inputs, _ = random_batch(network, network.batch)
    states = {precision: initial_state(network, precision, inputs) for precision in ("float32", "dfp16")}
    frozen = with_frozen_weights(network, states["dfp16"], "dfp16", jnp.asarray(inputs))
    leaves = jax.tree.leaves(frozen.params, is_leaf=lambda leaf: isinstance(leaf, dfpjax.FrozenArray))
    # The LSTM's kernels are concatenated before they are multiplied by.
    assert sum(isinstance(leaf, dfpjax.FrozenArray) for leaf in leaves) == 1
    expected = infer(states["float32"], inputs)
    assert jnp.max(jnp.abs(infer(frozen, inputs) - expected)) < 1e-3 * jnp.max(jnp.abs(expected))


def test_frozen_weights_are_measured_in_inference_alone(monkeypatch):
    measured = {}

    def measure(name, mode, allocator, contenders, arguments):
        measured[mode] = contenders
        return [], {}

    monkeypatch.setattr(train_step, "measure", measure)
    contenders = "jax-dfp16,jax-dfp16-frozen"
    train_step.main(["--model", "lstm", "--mode", "train", "--mode", "inference", "--contenders", contenders])
    assert measured == {"train": ["jax-dfp16"], "inference": contenders.split(",")}


def test_every_network_has_a_batch():
    assert {"resnet50", "vgg16", "alexnet", "googlenet", "lstm", "vit"} == NETWORKS.keys()
    assert all(network.batch >= 1 for network in NETWORKS.values())
