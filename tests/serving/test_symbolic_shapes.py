"""Programs exported with symbolic shapes."""

import threading

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import dfpjax
from dfpjax.kernels.passes import block_of, view_of
from dfpjax.numbers import Blocks
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.contraction.plan import make_plan
from dfpjax.operations.shaped import deferred_plan, plan_for
from tests.forced import FORCED, TENSOR_WIDE, forced

pytestmark = pytest.mark.jax_releases

NHWC = ("NHWC", "HWIO", "NHWC")
TOLERANCE = 1e-3
"""Of results in dynamic fixed point, relative to the largest one."""


def numbers(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def spec(text: str, constraints: tuple[str, ...] = ()) -> jax.ShapeDtypeStruct:
    shape = jax.export.symbolic_shape(text, constraints=constraints)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def exported(fun, *args) -> jax.export.Exported:
    """The program that a process reads back."""
    pytest.importorskip("flatbuffers", reason="serialization needs flatbuffers")
    return jax.export.deserialize(dfpjax.export(jax.jit(fun), *args).serialize())


def calls(program: jax.export.Exported, name: str) -> int:
    return program.mlir_module().count(f"@dfpjax_{name}_v1")


def test_layers_have_the_bits_of_fixed_shapes():
    weights = {"first": numbers(64, 96), "bias": numbers(96), "second": numbers(96, 10, seed=1)}

    def layers(weights, x):
        return jax.nn.relu(x @ weights["first"] + weights["bias"]) @ weights["second"]

    fun = dfpjax.mixed_precision(layers, FORCED)
    program = exported(fun, weights, spec("b, 64"))
    assert calls(program, "contract") == 2 and "dot_general" not in program.mlir_module()
    frozen = dfpjax.freeze(weights, fun=layers, args=(spec("b, 64"),), policy=FORCED)
    of_frozen = exported(fun, frozen, spec("b, 64"))
    assert calls(of_frozen, "contract_panels") == 1
    for rows in (1, 3, 33):
        x = numbers(rows, 64, seed=rows)
        found = program.call(weights, x)
        np.testing.assert_array_equal(found, dfpjax.export(fun, weights, x).call(weights, x))
        np.testing.assert_array_equal(of_frozen.call(frozen, x), jax.jit(fun)(frozen, x))
        first, bias, second = (np.float64(weights[name]) for name in ("first", "bias", "second"))
        exact = np.maximum(np.float64(x) @ first + bias, 0) @ second
        np.testing.assert_allclose(found, exact, atol=TOLERANCE * np.abs(exact).max())


@pytest.mark.parametrize(
    "policy",
    (FORCED, TENSOR_WIDE, forced(granularity="channel")),
    ids=("block", "tensor", "channel"),
)
def test_a_convolutional_network_has_the_bits_of_fixed_shapes(policy):
    weights = {"wide": numbers(3, 3, 3, 32), "deep": numbers(3, 3, 32, 32), "each": numbers(3, 3, 1, 32)}
    weights |= {"mean": numbers(32), "scale": numbers(32, seed=1), "shift": numbers(32, seed=2)}

    def convolve(x, kernel, strides=1, groups=1):
        strides = (strides, strides)
        return lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=NHWC, feature_group_count=groups
        )

    def network(weights, x):
        y = convolve(x, weights["wide"])
        y = jax.nn.relu((y - weights["mean"]) * weights["scale"] + weights["shift"])
        y = lax.reduce_window(y, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        y = convolve(jax.nn.relu(convolve(y, weights["deep"])), weights["each"], groups=32)
        return convolve(y, weights["deep"], strides=2)

    fun = dfpjax.mixed_precision(network, policy)
    program = exported(fun, weights, spec("b, 12, 12, 3"))
    assert calls(program, "contract") == 4 and "stablehlo.convolution" not in program.mlir_module()
    for images in (1, 5):
        x = numbers(images, 12, 12, 3, seed=images)
        np.testing.assert_array_equal(program.call(weights, x), jax.jit(fun)(weights, x))


def test_one_pass_rectifies_or_pools_and_quantizes():
    weights = {"kernel": numbers(3, 3, 32, 32), "scale": numbers(32, seed=1), "shift": numbers(32, seed=2)}

    def convolve(weights, x):
        return lax.conv_general_dilated(x, weights["kernel"], (1, 1), "SAME", dimension_numbers=NHWC)

    def network(weights, x):
        y = jax.nn.relu((convolve(weights, x) - weights["shift"]) * weights["scale"] + weights["shift"])
        y = jax.nn.relu(convolve(weights, y) + weights["shift"])
        y = lax.reduce_window(convolve(weights, y), -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return convolve(weights, y)

    fun = dfpjax.mixed_precision(network, FORCED)
    x = spec("b, 32, 32, 32")
    kinds = [record.kind for record in dfpjax.explain(network, weights, x, policy=FORCED).fused]
    assert kinds.count("operand from rectification") == 2 and "operand from pooling" in kinds
    program = exported(fun, weights, x)
    assert (calls(program, "rectified_operand"), calls(program, "pooled_operand")) == (2, 1)
    assert calls(program, "quantize_blocks") == 1 + 4  # the input, and the kernel
    x = numbers(40, 32, 32, 32)
    np.testing.assert_array_equal(program.call(weights, x), jax.jit(fun)(weights, x))
    x = x[:2]  # with fixed shapes it does without these passes, and XLA rounds sums of products otherwise
    wanted = jax.jit(fun)(weights, x)
    np.testing.assert_allclose(program.call(weights, x), wanted, atol=TOLERANCE * np.abs(wanted).max())


def attention(weights, x):
    images, tokens, width = x.shape
    projected = (x @ weights["in"]).reshape(images, tokens, 3, 2, width // 2).transpose(2, 0, 3, 1, 4)
    query, key, value = projected
    scores = jax.nn.softmax(query @ key.swapaxes(-1, -2) / 8)
    return (scores @ value).swapaxes(1, 2).reshape(images, tokens, width) @ weights["out"]


WEIGHTS = {"in": numbers(64, 192), "out": numbers(64, 64)}


@pytest.mark.parametrize(
    ("shape", "constraints", "sizes"),
    (("b, 20, 64", (), ((2, 20), (5, 20))), ("b, t, 64", ("t >= 32",), ((2, 32), (3, 45)))),
    ids=("batch", "batch and tokens"),
)
def test_attention_has_the_bits_of_fixed_shapes(shape, constraints, sizes):
    fun = dfpjax.mixed_precision(attention, FORCED)
    program = exported(fun, WEIGHTS, spec(shape, constraints))
    assert calls(program, "contract") == 4
    for images, tokens in sizes:
        x = numbers(images, tokens, 64, seed=tokens)
        np.testing.assert_array_equal(program.call(WEIGHTS, x), jax.jit(fun)(WEIGHTS, x))


def test_what_depends_on_an_extent_stays_in_float32_and_says_so(caplog):
    x = spec("b, t, 64")
    report = dfpjax.explain(attention, WEIGHTS, x, policy=FORCED)
    assert [op.dtype for op in report.ops] == ["dfp16", "float32", "float32", "dfp16"]
    assert "'t >= 32'" in report.ops[1].reason and "[b,2,t,t]" in report.ops[2].reason
    fun = dfpjax.mixed_precision(attention, FORCED)
    program = exported(fun, WEIGHTS, x)
    assert calls(program, "contract") == 2
    assert len([r for r in caplog.records if "depend on its symbolic extents" in r.message]) == 2
    x = numbers(2, 7, 64)
    exact = jax.jit(attention)(WEIGHTS, x)
    np.testing.assert_allclose(program.call(WEIGHTS, x), exact, atol=1e-2 * np.abs(exact).max())


def test_gradients_have_the_bits_of_fixed_shapes():
    @dfpjax.mixed_precision(policy=FORCED)
    def gradient(weights, x):
        return jax.grad(lambda weights: (jax.nn.relu(x @ weights) ** 2).mean())(weights)

    weights = numbers(64, 48)
    program = exported(gradient, weights, spec("b, 64"))
    assert calls(program, "contract") == 2
    for rows in (3, 33):
        x = numbers(rows, 64, seed=rows)
        np.testing.assert_array_equal(program.call(weights, x), jax.jit(gradient)(weights, x))


def test_gradients_that_depend_on_an_extent_stay_in_float32(caplog):
    def product(x, weights):
        return x @ weights

    weights, x = numbers(64, 8), spec("b, 2, t, 64")  # a block of the result's cotangent has all columns
    (op,) = dfpjax.explain(product, x, weights, policy=FORCED).ops
    assert (op.dtype, op.dgrad, op.wgrad) == ("dfp16", "float32", "float32")
    assert "gradients are in float32" in op.reason and "'t >= 32'" in op.reason

    def gradient(of):
        return jax.grad(lambda x, weights: (of(x, weights) ** 2).sum())

    program = dfpjax.export(jax.jit(gradient(dfpjax.mixed_precision(product, FORCED))), x, weights)
    assert "float32 for the gradients of dot_general" in caplog.text
    x = numbers(2, 2, 5, 64)
    exact = gradient(product)(x, weights)
    np.testing.assert_allclose(program.call(x, weights), exact, atol=TOLERANCE * np.abs(exact).max())


def test_fixed_chains_and_batched_functions():
    policy = forced(accumulation=dfpjax.FixedChain(2))
    weights = numbers(64, 48)
    fun = jax.vmap(dfpjax.mixed_precision(lambda x, weights: x @ weights, policy), (0, None))
    program = exported(fun, spec("b, 3, 64"), weights)
    x = numbers(4, 3, 64)
    np.testing.assert_array_equal(program.call(x, weights), jax.jit(fun)(x, weights))


def test_the_cost_rule_takes_large_batches():
    weights = numbers(512, 512)
    report = dfpjax.explain(jnp.matmul, spec("b, 512"), weights)
    assert report.ops[0].dtype == "dfp16" and report.macs == 128 * 512 * 512
    assert "[b,512] x [512,512]" in str(report)
    assert report.to_dicts()[0]["lhs_shape"] == ("b", 512)
    few = dfpjax.explain(jnp.matmul, spec("b, 512", ("b <= 8",)), weights)
    assert few.ops[0].dtype == "float32" and few.macs == 8 * 512 * 512
    many = dfpjax.explain(jnp.matmul, spec("8*b, 512", ("b >= 32",)), weights)
    assert many.ops[0].dtype == "dfp16" and many.macs == 8 * 128 * 512 * 512


def test_a_convolution_says_its_algorithm():
    kernel = numbers(3, 3, 64, 64)

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)

    symbolic, fixed = (
        dfpjax.explain(convolve, x, kernel).ops[0]
        for x in (spec("b, 28, 28, 64"), jax.ShapeDtypeStruct((128, 28, 28, 64), jnp.float32))
    )
    assert symbolic.algorithms == fixed.algorithms and symbolic.macs == fixed.macs


def test_the_reference_stays_in_float32(caplog):
    fun = dfpjax.mixed_precision(jnp.matmul, FORCED, backend="reference")
    program = dfpjax.export(fun, spec("b, 64"), numbers(64, 32))
    assert "@dfpjax" not in program.mlir_module()
    assert 'backend="reference" takes no symbolic extents' in caplog.text


def test_other_platforms_say_what_to_do():
    fun = dfpjax.mixed_precision(jnp.matmul, FORCED)
    with pytest.raises(NotImplementedError, match="fixed shapes"):
        dfpjax.export(fun, spec("b, 64"), numbers(64, 32), platforms=("tpu",))


def test_threads_share_a_program():
    fun = dfpjax.mixed_precision(jnp.matmul, FORCED)
    weights, x = numbers(40, 56), numbers(7, 40)
    call = jax.jit(dfpjax.export(fun, spec("b, 40"), weights).call)
    compiled = call.lower(x, weights).compile()
    found = []
    threads = [threading.Thread(target=lambda: found.append(compiled(x, weights))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    for result in found:
        np.testing.assert_array_equal(result, jax.jit(fun)(x, weights))


def test_a_deferred_plan_is_that_of_the_shapes():
    blocks = Blocks(), Blocks()
    rows, inner, columns = 5, 64, 96
    contraction = Contraction(lhs=(0, 1), rhs=(1, 2), out=(0, 2), out_shape=(rows, columns))
    lhs, rhs = (rows, inner), (inner, columns)
    exponents = [Blocks().counts(shape) for shape in (lhs, rhs)]
    plan = make_plan(contraction, lhs, rhs, *exponents, blocks)
    text = deferred_plan(contraction, blocks, "direct").text
    shapes = [lhs, exponents[0], rhs, exponents[1], (rows, columns)]
    assert plan_for(text, [list(shape) for shape in shapes]) == (plan.swapped, plan.encode())
    text = deferred_plan(contraction, blocks, "direct", rhs=(rhs, exponents[1])).text
    assert plan_for(text, [lhs, exponents[0], (rows, columns)]) == (plan.swapped, plan.encode())


def test_passes_are_told_which_axes_they_count():
    batch, tokens = jax.export.symbolic_shape("b, t")
    assert view_of((batch, 3, 64), Blocks(), 0).tolist() == [1, -1, 3, 64]
    assert view_of((4, batch, 3, tokens, 64), Blocks(), 1).tolist() == [4, -2, -12, 64]
    assert block_of((batch, 3, 64), Blocks(), 0).tolist() == [1, 32]
    assert view_of((batch, tokens, 8), Blocks(), 0).tolist() == [1, -1, 1, -6]
    assert block_of((batch, tokens, 8), Blocks(), 0).tolist() == [1, -6]


def test_blocks_of_symbolic_columns():
    fun = dfpjax.mixed_precision(lambda x, y: x @ y, FORCED)
    weights = numbers(8, 40)
    program = exported(fun, spec("b, t, 8"), weights)
    x = numbers(2, 13, 8)
    np.testing.assert_array_equal(program.call(x, weights), jax.jit(fun)(x, weights))


def test_devices_compute_the_whole(caplog):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("batch",), ())
    )
    fun = dfpjax.mixed_precision(jnp.matmul, FORCED)
    weights, x = numbers(64, 48), numbers(6, 64)
    partitioned = jax.jit(fun, in_shardings=(split, whole), out_shardings=split)
    program = dfpjax.export(partitioned, spec("2*b, 64"), weights)
    assert "which all compute the whole" in caplog.text
    found = jax.jit(program.call)(jax.device_put(x, split), jax.device_put(weights, whole))
    np.testing.assert_array_equal(found, jax.jit(fun)(x, weights))
