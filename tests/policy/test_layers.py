"""Layer names from name stacks, and paths of arguments."""

import functools

import jax
import jax.numpy as jnp
import pytest

from dfpjax.policy._layers import argument_paths, in_backward_pass, layer_name


def stacks(fun, *args):
    """The name stack of every dot product, as seen from outside."""

    def walk(jaxpr, stack):
        for eqn in jaxpr.eqns:
            here = stack + eqn.source_info.name_stack
            if eqn.primitive.name == "dot_general":
                yield here
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from walk(inner, here)

    from jax.extend.source_info_util import new_name_stack

    return list(walk(jax.make_jaxpr(fun)(*args).jaxpr, new_name_stack()))


def net(w, x, wrap=lambda f: f):
    def dense(w, x):
        with jax.named_scope("dense"):
            return jnp.tanh(x @ w)

    with jax.named_scope("net"), jax.named_scope("block"):
        return wrap(dense)(w, x)


W, X = jnp.ones((3, 3)), jnp.ones((2, 3))


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.checkpoint, lambda f: lambda w, x: jax.vmap(f, (None, 0))(w, x[None])]
)
def test_wrappers_are_stripped(wrap):
    fun = functools.partial(net, wrap=wrap)

    def loss(w, x):
        return fun(w, x).sum()

    for derived in (fun, jax.grad(loss, (0, 1)), jax.jit(jax.grad(loss, (0, 1)))):
        assert {layer_name(stack) for stack in stacks(derived, W, X)} == {"net/block/dense"}


def test_backward_passes_are_told():
    def loss(w, x):
        return net(w, x).sum()

    assert [in_backward_pass(stack) for stack in stacks(loss, W, X)] == [False]
    assert [in_backward_pass(stack) for stack in stacks(jax.grad(loss, (0, 1)), W, X)] == [False, True, True]

    def remat(w, x):
        return net(w, x, jax.checkpoint).sum()

    assert (
        sum(in_backward_pass(stack) for stack in stacks(jax.grad(remat), W, X)) == 2
    )  # recomputed, and wgrad


def paths_of(fun, args, kwargs):
    leaves, _ = jax.tree_util.tree_flatten_with_path((args, kwargs))
    return argument_paths(fun, [path for path, _ in leaves])


def test_argument_paths():
    def fun(variables, x, *rest, train=False, **others):
        pass

    args = ({"params": {"Conv_0": {"kernel": 1, "bias": 2}}}, 3, 4, [5, 6])
    kwargs = {"train": True, "mask": 7, "rngs": {"dropout": 8}}
    paths = paths_of(fun, args, kwargs)
    leaves = jax.tree.leaves((args, kwargs))
    assert dict(zip(leaves, paths, strict=True)) == {
        1: "train",  # True == 1, and comes last
        2: "params/Conv_0/bias",
        3: "x",
        4: "args/2",
        5: "0",
        6: "1",
        7: "mask",
        8: "dropout",
    }
    assert paths[1] == "params/Conv_0/kernel"


def test_argument_paths_without_a_signature():
    assert paths_of(max, (1, 2), {}) == ["args/0", "args/1"]
    assert paths_of(functools.partial(net, W), (X,), {}) == ["x"]
