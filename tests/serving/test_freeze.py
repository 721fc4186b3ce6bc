"""`freeze`: a frozen program has the bits of the same program with float32 weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import dfpjax
from dfpjax.numbers.format.frozen import Rows
from dfpjax.numbers.format.panels import Panels

FORCED = dfpjax.Policy(default=dfpjax.OpConfig(force=True))


def normal(shape, seed=0):
    """Rows of different magnitudes, so that exponents in a panel differ."""
    random = np.random.default_rng(seed)
    scales = np.exp2(random.integers(-3, 4, (*shape[:-1], 1)))
    return jnp.asarray(random.normal(size=shape) * scales, jnp.float32)


def form_of(frozen):
    (leaf,) = jax.tree.leaves(frozen, is_leaf=lambda x: isinstance(x, dfpjax.FrozenArray))
    return leaf.form


def equal(actual, expected):
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


@pytest.mark.parametrize("rows", [1, 4, 8, 13])
@pytest.mark.parametrize("shape", [(64, 64), (300, 100), (520, 48)])
def test_a_matrix_is_packed_and_gives_the_same_bits(rows, shape):
    weights, x = {"kernel": normal(shape)}, normal((rows, shape[0]), 1)

    def product(weights, x):
        return x @ weights["kernel"]

    frozen = dfpjax.freeze(weights)
    assert isinstance(form_of(frozen), Panels)
    expected = dfpjax.mixed_precision(product, FORCED)(weights, x)
    equal(jax.jit(dfpjax.mixed_precision(product))(frozen, x), expected)
    equal(dfpjax.mixed_precision(product, backend="reference")(frozen, x), expected)
    equal(dfpjax.mixed_precision(product, FORCED)(dfpjax.thaw(frozen), x), expected)
    again = dfpjax.freeze(dfpjax.thaw(frozen))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(frozen), strict=True):
        equal(a, b)


def test_a_transformed_function_is_refused():
    def product(weights, x):
        with jax.named_scope("dense"):
            return x @ weights["kernel"]

    weights, x = {"kernel": normal((64, 64))}, normal((4, 64))
    with pytest.raises(ValueError, match="freeze: fun runs dense in dynamic fixed point already"):
        dfpjax.freeze(weights, fun=dfpjax.mixed_precision(product, FORCED), args=(x,))


def test_a_transposed_matrix_is_read_as_it_lies_in_memory():
    table, x = normal((96, 64)), normal((3, 64), 1)

    def logits(table, x):
        return x @ table.T

    frozen = dfpjax.freeze(table, fun=logits, args=(x,))
    assert form_of(frozen).contracted == 1

    def contracted(table, x):
        return lax.dot_general(x, table, (((1,), (1,)), ((), ())))

    equal(dfpjax.mixed_precision(logits)(frozen, x), dfpjax.mixed_precision(contracted, FORCED)(table, x))


def test_a_convolution_reads_its_frozen_kernel():
    kernel, x = normal((3, 3, 16, 32)), normal((2, 8, 8, 16), 1)

    def convolution(kernel, x):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    frozen = dfpjax.freeze(kernel, fun=convolution, args=(x,))
    assert isinstance(form_of(frozen), Rows)
    equal(
        dfpjax.mixed_precision(convolution)(frozen, x),
        dfpjax.mixed_precision(convolution, FORCED)(kernel, x),
    )
    (record,) = dfpjax.explain(convolution, frozen, x).ops
    assert "reads frozen weights" in record.reason


def test_a_kernel_that_is_rearranged_stays_float32():
    kernel, x = normal((32, 16, 3, 3)), normal((2, 8, 8, 16), 1)

    def convolution(kernel, x):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC"))

    assert dfpjax.freeze(kernel, fun=convolution, args=(x,)) is kernel
    frozen = dfpjax.freeze(kernel)
    (record,) = dfpjax.explain(convolution, frozen, x, policy=FORCED).ops
    assert "dequantizes frozen weights: the convolution rearranges it first" in record.reason
    equal(
        dfpjax.mixed_precision(convolution, FORCED)(frozen, x),
        dfpjax.mixed_precision(convolution, FORCED)(dfpjax.thaw(frozen), x),
    )


def layers(weights, x, how):
    """The same layers in a loop, as a Python loop or as a scan over the stacked weights."""
    if how == "scan":
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]
    for w in weights:
        x = jnp.tanh(x @ w)
    return x


def test_a_scan_slices_stacked_frozen_weights():
    stacked, x = normal((3, 64, 64)), normal((2, 64), 1)

    def scanned(weights, x):
        return layers(weights, x, "scan")

    frozen = dfpjax.freeze(stacked, fun=scanned, args=(x,))
    assert isinstance(form_of(frozen), Panels)
    expected = dfpjax.mixed_precision(scanned, FORCED)(stacked, x)
    equal(dfpjax.mixed_precision(scanned)(frozen, x), expected)
    equal(dfpjax.mixed_precision(scanned)(dfpjax.freeze(stacked), x), expected)  # in rows
    assert dfpjax.explain(scanned, frozen, x).coverage == 1


def in_jit(w, x):
    return jax.jit(lambda w, x: x @ w)(w, x)


def in_remat(w, x):
    return jax.checkpoint(lambda w, x: x @ w)(w, x)


def in_cond(w, x):
    return lax.cond(x[0, 0] > 0, lambda w, x: x @ w, lambda w, x: -(x @ w), w, x)


def in_while(w, x):
    return lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, x))[1]


def in_scan_constant(w, x):
    return lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=2)[0]


def in_a_rule(w, x):
    product = jax.custom_vjp(lambda w, x: x @ w)
    product.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, ct: (saved[1].T @ ct, ct @ saved[0].T))
    return product(w, x)


@pytest.mark.jax_releases
@pytest.mark.parametrize("inside", [in_jit, in_remat, in_cond, in_while, in_scan_constant])
def test_frozen_weights_enter_the_jaxprs_of_a_program(inside):
    w, x = normal((64, 64)), normal((2, 64), 1)
    frozen = dfpjax.freeze(w)
    equal(dfpjax.mixed_precision(inside)(frozen, x), dfpjax.mixed_precision(inside, FORCED)(w, x))
    report = dfpjax.explain(inside, frozen, x)
    assert report.coverage == 1 and all("reads frozen" in op.reason for op in report.ops)


def test_where_frozen_weights_cannot_enter_their_values_do():
    w, x = normal((64, 64)), normal((2, 64), 1)
    frozen = dfpjax.freeze(w)
    forced = dfpjax.mixed_precision(in_a_rule, FORCED)
    equal(forced(frozen, x), forced(w, x))


@pytest.mark.jax_releases
def test_vmap_over_examples_and_over_weights():
    w, x = normal((64, 48)), normal((3, 2, 64), 1)

    def product(w, x):
        return x @ w

    frozen = dfpjax.freeze(w)
    apply = dfpjax.mixed_precision(product)
    expected = dfpjax.mixed_precision(product, FORCED)
    equal(jax.vmap(apply, in_axes=(None, 0))(frozen, x), jnp.stack([expected(w, one) for one in x]))
    several = [normal((64, 48), seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *map(dfpjax.freeze, several))
    outs = [expected(w, one) for w, one in zip(several, x, strict=True)]
    equal(jax.vmap(apply)(stacked, x), jnp.stack(outs))


def test_gradients_flow_through_frozen_weights_and_not_to_them():
    w, x = normal((64, 48)), normal((3, 64), 1)

    def loss(w, x):
        return jnp.sum(jnp.sin(jnp.arange(48.0)) * (x @ w))

    frozen = dfpjax.freeze(w)
    apply = dfpjax.mixed_precision(loss)
    gradient = jax.grad(apply, argnums=1)(frozen, x)
    exact = jax.grad(loss, argnums=1)(dfpjax.thaw(frozen), x)
    assert np.abs(gradient - exact).max() < 2e-3 * np.abs(exact).max()
    with pytest.raises(TypeError, match="int16"):
        jax.grad(apply)(frozen, x)
    inside = dfpjax.mixed_precision(jax.grad(loss, argnums=1))
    assert np.abs(inside(frozen, x) - exact).max() < 2e-3 * np.abs(exact).max()
    with pytest.raises(ValueError, match="gradient by frozen weights"):
        dfpjax.mixed_precision(jax.grad(loss))(frozen, x)


@pytest.mark.parametrize("shape", [(96, 64), (100, 70), (40, 300)])
@pytest.mark.parametrize("contracted", [0, 1, None])
def test_rows_are_looked_up_in_a_frozen_table(shape, contracted):
    table = normal(shape)

    def product(table, x):
        return lax.dot_general(x, table, (((1,), (contracted,)), ((), ())))

    if contracted is None:
        frozen = dfpjax.freeze(table.reshape(1, *shape))
        frozen = dfpjax.FrozenArray(
            (frozen.arrays[0][0], frozen.arrays[1].reshape(shape[0], 1, -1)), frozen.form
        )
    else:
        frozen = dfpjax.freeze(table, fun=product, args=(jnp.ones((2, shape[contracted])),))
    values = np.asarray(frozen)
    index = jnp.array([[0, 39, shape[0] - 1], [-1, 5, 33]])
    look_up = dfpjax.mixed_precision(lambda table, index: table[index])
    equal(look_up(frozen, index), values[index])
    beyond = dfpjax.mixed_precision(lambda table, index: jnp.take(table, index, axis=0))
    equal(beyond(frozen, jnp.array([2, 1000])), np.asarray(jnp.take(values, jnp.array([2, 1000]), axis=0)))
    equal(dfpjax.mixed_precision(lambda t, i: t[i])(frozen, 3), values[3])


def test_other_uses_see_the_values():
    w, x = normal((64, 48)), normal((3, 64), 1)
    frozen = dfpjax.freeze(w)
    values = dfpjax.thaw(frozen)
    apply = dfpjax.mixed_precision(lambda w, x: (w[jnp.array([3, 5])], jnp.sum(w, 0), w + 1))
    for actual, expected in zip(
        apply(frozen, x), (values[jnp.array([3, 5])], values.sum(0), values + 1), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    equal(jnp.asarray(frozen), values)
    equal(np.asarray(frozen), values)
    assert np.abs(np.asarray(values - w)).max() < 2**-14 * np.abs(w).max()


def test_another_format_or_precision_is_dequantized_and_explained():
    w, x = normal((64, 64)), normal((512, 64), 1)

    def product(w, x):
        return x @ w

    frozen = dfpjax.freeze(w)
    policy = dfpjax.Policy(default=dfpjax.OpConfig(granularity="tensor", force=True))
    (record,) = dfpjax.explain(product, frozen, x, policy=policy).ops
    assert "dequantizes frozen weights: it has 16 bits in" in record.reason
    exact = dfpjax.mixed_precision(lambda w, x: jnp.dot(x, w, precision="highest"))
    np.testing.assert_allclose(exact(frozen, x), x @ dfpjax.thaw(frozen), rtol=1e-4, atol=1e-3)


def test_what_is_frozen_by_name_and_by_program():
    variables = {
        "kernel": normal((64, 64)),
        "bias": normal((64,)),
        "embedding": normal((32, 64)),
        "unused": normal((8, 8)),
    }
    x = jnp.array([1, 2])

    def apply(v, x):
        return v["embedding"][x] @ v["kernel"] + v["bias"]

    def frozen_names(frozen):
        return {name for name, leaf in frozen.items() if isinstance(leaf, dfpjax.FrozenArray)}

    assert frozen_names(dfpjax.freeze(variables)) == {"kernel", "unused"}
    assert frozen_names(dfpjax.freeze(variables, fun=apply, args=(x,))) == {"kernel"}
    kept = dfpjax.Policy(rules=[dfpjax.Rule("kernel", None)])
    assert frozen_names(dfpjax.freeze(variables, kept)) == {"unused"}
    assert frozen_names(dfpjax.freeze(variables, kept, fun=apply, args=(x,))) == set()


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="freeze: a/kernel holds a NaN or an infinity"):
        dfpjax.freeze({"a": {"kernel": normal((64, 64)).at[3, 4].set(np.nan)}})


def test_wrong_arguments_say_what_to_do():
    with pytest.raises(TypeError, match=r"freeze: policy must be a dfpjax\.Policy"):
        dfpjax.freeze({}, 3)
    with pytest.raises(TypeError, match="args and kwargs are those of fun"):
        dfpjax.freeze({}, args=(1,))


def test_linen():
    model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(32)])
    x = normal((2, 64))
    variables = model.init(jax.random.key(0), x)
    frozen = dfpjax.freeze(variables, fun=model.apply, args=(x,))
    expected = dfpjax.mixed_precision(model.apply, FORCED)(variables, x)
    equal(jax.jit(dfpjax.mixed_precision(model.apply))(frozen, x), expected)
    assert dfpjax.explain(model.apply, frozen, x).coverage == 1


def test_nnx():
    model = nnx.Sequential(
        nnx.Linear(64, 64, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(64, 32, rngs=nnx.Rngs(1))
    )
    x = normal((2, 64))
    graph, state = nnx.split(model)

    def apply(state, x):
        return nnx.merge(graph, state)(x)

    expected = dfpjax.mixed_precision(apply, FORCED)(state, x)
    frozen = dfpjax.freeze(state, fun=apply, args=(x,))
    equal(dfpjax.mixed_precision(apply)(frozen, x), expected)
    assert dfpjax.explain(apply, frozen, x).coverage == 1
