"""Finding an operation's layer and pass from the operands and names that it shares with other operations."""

from dfpjax.policy import OpConfig, Policy, Rule
from dfpjax.policy._passes import Layers
from dfpjax.policy._rules import Operation


def operation(name, lhs, rhs, *, derived=False, recomputed=False):
    return Operation(
        primitive="dot_general", name=name, operands=(lhs, rhs), derived=derived, recomputed=recomputed
    )


def backward(name, lhs, rhs):
    return operation(name, lhs, rhs, derived=True)


def kinds(forward, *others):
    layers = Layers([*forward, *others])
    return [layers.part(op).kind for op in others]


def test_the_forward_operation_itself():
    op = operation("A", object(), "w")
    part = Layers([op]).part(op)
    assert (part.kind, part.roles, part.layer) == ("fprop", ("lhs", "rhs"), (op,))


def test_gradients_are_told_by_the_operand_they_share():
    x, dy = object(), object()
    forward = operation("A", x, "w")
    dgrad, wgrad, swapped = backward("A", dy, "w"), backward("A", x, dy), backward("A", dy, x)
    layers = Layers([forward, dgrad, wgrad, swapped])
    parts = [layers.part(op) for op in (dgrad, wgrad, swapped)]
    assert [part.kind for part in parts] == ["dgrad", "wgrad", "wgrad"]
    assert [part.roles for part in parts] == [
        ("cotangent", "rhs"),
        ("lhs", "cotangent"),
        ("cotangent", "lhs"),
    ]
    assert {part.layer for part in parts} == {(forward,)}


def test_names_tell_layers_apart():
    x, y, dy, dz = object(), object(), object(), object()
    forward = [operation("A", x, y), operation("B", y, x)]
    assert kinds(forward, backward("A", dy, x), backward("B", dz, x)) == ["wgrad", "dgrad"]


def test_without_names_operands_do():
    x, y, dy = object(), object(), object()
    forward = [operation("", x, "v"), operation("", y, "w")]
    assert kinds(forward, backward("", dy, "w"), backward("", dy, y)) == ["dgrad", "wgrad"]


def test_what_cannot_be_told():
    x, dy, ddy = object(), object(), object()
    forward = [operation("A", x, x), operation("B", x, "w")]
    others = [
        backward("A", dy, x),  # with respect to either operand
        backward("B", ddy, dy),  # a second derivative
        backward("C", x, dy),  # there is no such layer
        backward("B", None, None),
    ]
    assert kinds(forward, *others) == [None] * 4
    assert Layers(forward).part(others[1]).roles == ("lhs", "rhs")


def test_what_is_recomputed_is_forward_and_lends_its_operands():
    x, again, dy = object(), object(), object()
    forward = operation("A", x, "w")
    repeated = operation("A", again, "w", derived=True, recomputed=True)
    assert kinds([forward, repeated], repeated, backward("A", dy, again)) == ["fprop", "wgrad"]


def test_rules_for_parameters_hold_for_the_weight_gradient():
    """The weight gradient takes no parameter, but belongs to the layer that does."""
    x, dq, dk = object(), object(), object()
    query, key = operation("", x, "params/q"), operation("", x, "params/k")
    others = [
        backward("", dq, "params/q"),
        backward("", x, dq),
        backward("", dk, "params/k"),
        backward("", x, dk),
    ]
    bound = Policy(rules=[Rule("params/q", None)], default=OpConfig()).bind([query, key, *others])
    assert [bound.decide(op).config for op in others] == [None, None, OpConfig(), OpConfig()]


def test_unmatched_rules():
    forward = operation("Net/A", object(), "params/w")
    rules = [Rule("A$", None), Rule("params/v", None), Rule("Net", None)]
    assert Policy(rules=rules).bind([forward]).unmatched([forward]) == (rules[1],)
