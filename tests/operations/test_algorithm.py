"""The `algorithm` of a convolution: it reaches derivatives, vmap and statistics, and is refused where it is
not possible."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import COMPILED_QUICKLY

from dfpjax import FixedChain
from dfpjax.numbers import Quantizer, Quantizers
from dfpjax.operations import conv_general_dilated, primitives, saturated_chains
from dfpjax.operations.algorithms import conv_algorithms

BLOCK = Quantizer(granularity="block")
IN_BLOCKS = Quantizers(lhs=BLOCK, rhs=BLOCK, cotangent=BLOCK)
SAME = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
conv = functools.partial(conv_general_dilated, **SAME, quantizers=IN_BLOCKS, backend="reference")
jit = functools.partial(jax.jit, compiler_options=COMPILED_QUICKLY)


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


X, W, W5 = arrays((2, 7, 6, 16), (3, 3, 16, 10), (5, 5, 16, 10))


def float32(x, w, *, padding):
    return jax.lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def algorithms_of(function, *args):
    """The algorithm that each contraction of a traced function asks for."""
    eqns = jax.make_jaxpr(function)(*args).eqns
    return [
        eqn.params["algorithm"]
        for eqn in eqns
        if eqn.primitive.name in ("dfp_contract", "dfp_contract_linear")
    ]


@pytest.mark.parametrize(
    ("algorithm", "kernel", "bound"),
    [("winograd2", W, 2e-4), ("winograd4", W, 5e-4), ("winograd2", W5, 5e-4)],
)
def test_an_operation_and_its_gradients(algorithm, kernel, bound):
    def loss(conv, x, w):
        y = conv(x, w, padding=((len(w) // 2,) * 2,) * 2)
        return jnp.sum(y * jnp.sin(y)), y

    def run(conv):
        return jit(jax.grad(functools.partial(loss, conv), (0, 1), has_aux=True))(X, kernel)

    named, direct, exact = (run(f) for f in (functools.partial(conv, algorithm=algorithm), conv, float32))
    assert oracle.relative_error(named[1], exact[1]) < bound
    # Sines amplify the errors of their arguments.
    assert oracle.relative_error(named[0], exact[0]) < 20 * bound
    for a, b in zip(jax.tree.leaves(named), jax.tree.leaves(direct), strict=True):
        assert not np.array_equal(a, b)
    gradient = jax.grad(lambda x, w: loss(functools.partial(conv, algorithm=algorithm), x, w)[0], (0, 1))
    assert algorithms_of(gradient, X, kernel) == [algorithm] * 3
    assert {*algorithms_of(jax.hessian(lambda x: gradient(x, kernel)[0].sum()), X)} == {algorithm}


def test_auto_is_direct_where_tiles_or_channels_are_few():
    assert {choice.algorithm for choice in conv_algorithms_of("auto")} == {"direct"}
    results = [jit(functools.partial(conv, algorithm=name))(X, W) for name in ("auto", "direct")]
    np.testing.assert_array_equal(*results)


def conv_algorithms_of(algorithm, **changes):
    parameters = {**SAME, **changes}
    return conv_algorithms(
        X.shape, W.shape, quantizers=IN_BLOCKS, accumulation="certified", algorithm=algorithm, **parameters
    )


def test_gradients_are_direct_where_need_be():
    fprop, dgrad, wgrad = conv_algorithms_of("winograd4", padding=((2, 2), (2, 2)))
    assert (fprop.algorithm, dgrad.algorithm, wgrad.algorithm) == ("winograd4", "winograd4", "direct")
    assert wgrad.reason == "the innermost axis of the result is not one of channels"
    full = functools.partial(conv, padding=((2, 2), (2, 2)))
    gradient = [
        jit(jax.grad(lambda w, f=f: jnp.sum(f(X, w))))(W)
        for f in (functools.partial(full, algorithm="winograd4"), full)
    ]
    np.testing.assert_array_equal(*gradient)


def test_each_example_of_vmap_is_computed_as_without_it():
    x, w = arrays((3, 1, 5, 6, 8), (3, 3, 8, 10))
    named = functools.partial(conv, algorithm="winograd2")
    batched = jit(jax.vmap(named, (0, None)))(x, w)
    one = jit(named)
    for example, expected in zip(x, batched, strict=True):
        np.testing.assert_array_equal(one(example, w), expected)


def test_channels_last_where_a_winograd_algorithm_is_asked_for():
    """A tensor with one exponent keeps its layout otherwise."""
    numbers = ("NCHW", "OIHW", "NCHW")
    x, w = X.transpose(0, 3, 1, 2), W.transpose(3, 2, 0, 1)
    per_tensor = functools.partial(conv, quantizers=Quantizers())
    named = jit(functools.partial(per_tensor, algorithm="winograd4", dimension_numbers=numbers))(x, w)
    expected = jit(functools.partial(per_tensor, algorithm="winograd4"))(X, W)
    np.testing.assert_array_equal(named, expected.transpose(0, 3, 1, 2))
    with pytest.raises(
        ValueError, match="must be one of 'auto', 'direct', 'winograd2', 'winograd4', got 'fft'"
    ):
        conv(X, W, algorithm="fft")


def test_chain_lengths_are_those_of_the_transformed_products():
    shares = []
    for algorithm in ("direct", "winograd4"):
        jaxpr = jax.make_jaxpr(functools.partial(conv, algorithm=algorithm))(X, W)
        (eqn,) = (eqn for eqn in jaxpr.eqns if eqn.primitive is primitives.contract_p)

        def lengths(x, w, jaxpr=jaxpr, eqn=eqn):
            operands = jax.core.eval_jaxpr(jaxpr.jaxpr.replace(outvars=eqn.invars), jaxpr.consts, x, w)
            return primitives.chain_lengths(primitives.contract_p, *operands, **eqn.params)

        shares.append(jit(lengths)(X, W))
    np.testing.assert_allclose([s.sum() for s in shares], 1, rtol=1e-5)
    assert not np.array_equal(*shares)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"window_strides": (2, 2)}, "a stride or dilation of 2"),
        ({"rhs_dilation": (1, 3)}, "a stride or dilation of 3"),
        ({"quantizers": Quantizers(rhs=Quantizer(granularity="channel"))}, 'granularity "channel"'),
        ({"accumulation": FixedChain(32, saturate=True), "quantizers": Quantizers()}, "FixedChain"),
    ],
)
def test_what_they_do_not_take(changes, reason):
    with pytest.raises(
        ValueError, match=r"conv_general_dilated: algorithm='winograd4' cannot .*" + reason
    ) as error:
        conv(X, W, algorithm="winograd4", **changes)
    assert str(error.value).endswith('algorithm="auto" chooses one that can')


def test_the_error_of_a_window_says_which_algorithm_takes_it():
    with pytest.raises(ValueError, match=r"has 5x5 taps, not 3x3 \(winograd2 takes 5x5\)\."):
        conv(X, W5, algorithm="winograd4", padding=((2, 2), (2, 2)))


def test_saturated_chains_of_an_algorithm():
    counts = saturated_chains(
        conv_general_dilated, X, W, quantizers=IN_BLOCKS, backend="reference", algorithm="winograd4", **SAME
    )
    assert counts.fprop == 0
