"""A call flattens its arguments once: a class among them may count flattenings, or refuse a second one."""

import equinox
import jax
import jax.numpy as jnp
import pytest
from forced import FORCED
from transform_helpers import normal, relative_error

import dfpjax
from dfpjax.transform import mixed_precision

W, X = normal(0, 6, 6) / 2, normal(1, 4, 6)


@jax.tree_util.register_pytree_with_keys_class
class Counted:
    """Counts how often its instances, copies included, are flattened."""

    flattened = 0

    def __init__(self, w):
        self.w = w

    def tree_flatten(self):
        Counted.flattened += 1
        return (self.w,), None

    def tree_flatten_with_keys(self):
        Counted.flattened += 1
        return ((jax.tree_util.GetAttrKey("w"), self.w),), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def loss(x, counted):
    return jnp.mean(jnp.tanh(x @ counted.w) ** 2)


CALLS = {
    "mixed_precision": lambda: mixed_precision(loss, FORCED)(X, Counted(W)),
    "keyword": lambda: mixed_precision(loss, FORCED)(X, counted=Counted(W)),
    "float32": lambda: mixed_precision(loss, dfpjax.Policy(default=None))(X, Counted(W)),
    "unhashable": lambda: mixed_precision(lambda x, c, _: loss(x, c), FORCED)(X, Counted(W), {1, 2}),
    "explain": lambda: dfpjax.explain(loss, X, Counted(W), policy=FORCED),
    # Traced, because its many small operations take long to compile one by one.
    "with_statistics": lambda: jax.eval_shape(
        lambda x: dfpjax.with_statistics(loss, FORCED)(x, Counted(W)), X
    ),
    "sensitivity": lambda: dfpjax.sensitivity(loss, X, Counted(W), policy=FORCED, bits=(16, 8)),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_flattened_once(name):
    Counted.flattened = 0
    CALLS[name]()
    assert Counted.flattened == 1


def test_so_are_they_where_the_program_is_cached():
    transformed = mixed_precision(loss, FORCED)
    transformed(X, Counted(W))
    Counted.flattened = 0
    transformed(X, Counted(W))
    assert Counted.flattened == 1


class Net(equinox.Module):
    layer: equinox.nn.Linear
    norm: equinox.nn.BatchNorm

    def __call__(self, x, state):
        x, state = self.norm(self.layer(x), state)
        return jax.nn.relu(x), state


def net():
    model, state = equinox.nn.make_with_state(
        lambda: Net(
            equinox.nn.Linear(6, 5, key=jax.random.key(0)), equinox.nn.BatchNorm(5, "b", mode="batch")
        )
    )()
    arrays, static = equinox.partition(model, equinox.is_array)
    return (lambda arrays, x, state: equinox.combine(arrays, static)(x, state)), arrays, state


def batched(fun):
    return jax.vmap(fun, axis_name="b", in_axes=(None, 0, None), out_axes=(0, None))


@pytest.mark.parametrize(
    "wrap", [lambda f: batched(mixed_precision(f, FORCED)), lambda f: mixed_precision(batched(f), FORCED)]
)
def test_state_that_may_be_used_once(wrap):
    fun, arrays, state = net()
    expected, expected_state = batched(fun)(arrays, X, state)
    actual, new_state = wrap(fun)(arrays, X, net()[2])
    assert 0 < relative_error(actual, expected) < 1e-3
    assert relative_error(new_state, expected_state) < 1e-3


# --- changes of objects ----------------------------------------------------------------------------


class Node:
    """A node of a pytree that functions change in place."""

    def __init__(self, w, inside=None, notes=None):
        self.w, self.inside, self.notes = w, inside, notes


jax.tree_util.register_pytree_with_keys(
    Node,
    lambda n: (
        ((jax.tree_util.GetAttrKey("w"), n.w), (jax.tree_util.GetAttrKey("inside"), n.inside)),
        n.notes,
    ),
    lambda notes, children: Node(*children, notes),
)


def changes_its_own(node, x):
    node.w = node.w + 1
    return x @ node.w


def changes_an_inner_one(node, x):
    node.inside["a"][0].w = x @ node.w
    return x


def changes_a_dict_of_its_own(node, x):
    node.inside["a"].append(x @ node.w)
    return x


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (changes_its_own, "w"),
        (changes_an_inner_one, "inside/a/0/w"),
        (changes_a_dict_of_its_own, "inside/a/1"),
    ],
)
def test_changes_are_not_lost_silently(change, path):
    for call in (
        lambda n: mixed_precision(change, FORCED)(n, X),
        lambda n: mixed_precision(change, FORCED)(n, x=X),
    ):
        with pytest.raises(ValueError, match=rf"\({path}\).*would be lost"):
            call(Node(W, {"a": [Node(W)]}))


def caches(node, x):
    node.notes = x @ node.w  # not part of the pytree
    return node.notes


def returns(node, x):
    node.w = x @ node.w
    return node


@pytest.mark.parametrize("harmless", [caches, returns])
def test_other_changes_are_the_functions_own(harmless):
    actual, expected = mixed_precision(harmless, FORCED)(Node(W), X), harmless(Node(W), X)
    assert 0 < relative_error(actual, expected) < 1e-3
