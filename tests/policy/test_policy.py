"""Policies: construction, validation, equality and precedence."""

import pytest

from dfpjax.numbers import Blocks, FixedChain, Quantizer
from dfpjax.policy import OpConfig, PerRole, Policy, Position, Rule, policies
from dfpjax.policy._rules import Operation


def operation(name="", operands=(None, None), primitive="dot_general", derived=False):
    return Operation(primitive=primitive, name=name, operands=tuple(operands), derived=derived)


def test_config_gives_quantizers():
    quantizers = OpConfig(bits=12, rounding="truncate").quantizers()
    expected = Quantizer(bits=12, rounding="truncate", granularity="block")
    assert (quantizers.lhs, quantizers.rhs, quantizers.cotangent) == (expected, expected, expected)


def test_config_per_role():
    config = OpConfig(bits=PerRole(lhs=8, rhs=12, cotangent=16), rounding="biased")
    quantizers = config.quantizers()
    assert [q.bits for q in (quantizers.lhs, quantizers.rhs, quantizers.cotangent)] == [8, 12, 16]
    assert {q.rounding for q in (quantizers.lhs, quantizers.rhs, quantizers.cotangent)} == {"biased"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 17}, r"OpConfig: bits must be an integer from 2 to 16, got 17"),
        ({"bits": 1}, r"OpConfig: bits must be an integer from 2 to 16, got 1"),
        ({"bits": 8.0}, r"OpConfig: bits must be an integer from 2 to 16, got 8\.0"),
        ({"bits": PerRole(lhs=8, rhs=40, cotangent=8)}, r"OpConfig, rhs: bits must be .*, got 40"),
        (
            {"rounding": "up"},
            r"OpConfig: rounding must be one of nearest, stochastic, biased, truncate, got 'up'",
        ),
        ({"granularity": "row"}, r"OpConfig: granularity must be one of tensor, channel, block, got 'row'"),
        (
            {"granularity": PerRole(lhs="tensor", rhs="filter", cotangent="tensor")},
            r"OpConfig, rhs: granularity must be one of tensor, channel, block, got 'filter'",
        ),
        ({"blocks": 4}, r"OpConfig: blocks must be a Blocks, such as Blocks\(rows=8, columns=32\), got 4"),
        (
            {"blocks": PerRole(lhs=8, rhs=8, cotangent=8)},
            r"OpConfig, lhs: blocks must be a Blocks, such as .*, got 8",
        ),
        (
            {"granularity": PerRole(lhs="block", rhs="channel", cotangent="block")},
            'OpConfig: granularity "block" and "channel" do not go together .*, got "block" for lhs and '
            'cotangent, "channel" for rhs; choose one of the two',
        ),
        (
            {"accumulation": "saturating"},
            r"OpConfig: accumulation must be \"certified\" or a FixedChain, got 'saturating'",
        ),
        (
            {"accumulation": FixedChain(256, 2)},
            r"OpConfig: .* the bound \(14 − 1\) \+ \(14 − 1\) \+ log2\(256\) = 34 ≤ 31 does not hold",
        ),
        (
            {"bits": PerRole(lhs=12, rhs=12, cotangent=16), "accumulation": FixedChain(256)},
            r"OpConfig: .*16-bit and 12-bit mantissas can overflow",
        ),
        ({"bits": 4, "accumulation": FixedChain(2, 3)}, r"OpConfig: .*pre_shift=3 leaves 1 of 4 bits"),
        (
            {"algorithm": "winograd6"},
            r"OpConfig: algorithm must be one of auto, direct, winograd2, winograd4, got 'winograd6'",
        ),
        ({"algorithm": None}, r"OpConfig: algorithm must be one of auto, .*, got None"),
        (
            {"algorithm": "winograd4", "accumulation": FixedChain(2)},
            r"OpConfig: algorithm='winograd4' needs accumulation=\"certified\", got FixedChain\(length=2,",
        ),
        ({"dgrad": 1}, r"OpConfig: dgrad must be True or False, got 1"),
        ({"override_precision": "no"}, r"OpConfig: override_precision must be True or False, got 'no'"),
        (
            {"fprop": False, "dgrad": False, "wgrad": False},
            r"OpConfig: one of fprop, dgrad, wgrad must be True; .* use None in place of an OpConfig",
        ),
        (
            {"rounding": PerRole(lhs="nearest", rhs="nearest", cotangent="down")},
            r"OpConfig, cotangent: rounding must be one of .*, got 'down'",
        ),
    ],
)
def test_config_is_validated(fields, message):
    with pytest.raises(ValueError, match=message):
        OpConfig(**fields)


def test_blocks_per_role():
    sizes = {"lhs": Blocks(), "rhs": Blocks(rows=16), "cotangent": Blocks(columns=64)}
    granularity = PerRole(lhs="block", rhs="tensor", cotangent="block")
    quantizers = OpConfig(granularity=granularity, blocks=PerRole(**sizes)).quantizers()
    assert {role: getattr(quantizers, role).blocks for role in sizes} == sizes
    assert OpConfig(blocks=Blocks(rows=8)).quantizers(lhs="cotangent").lhs.blocks == Blocks(rows=8)


def test_repr_shows_what_is_not_default():
    assert repr(OpConfig()) == "OpConfig()"
    assert repr(OpConfig(bits=12, wgrad=False)) == "OpConfig(bits=12, wgrad=False)"
    assert repr(Rule("Dense_0$", None)) == "Rule('Dense_0$', None)"
    assert (
        repr(Rule(policies.LAST_DOT, OpConfig(bits=8)))
        == "Rule(Position('dot_general', -1), OpConfig(bits=8))"
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Rule("Dense_(", None), ValueError, r"Rule: 'Dense_\(' is not a valid regular expression"),
        (lambda: Rule(3, None), TypeError, r"Rule: pattern must be a string .* or a Position, got 3"),
        (
            lambda: Rule("Dense", 8),
            TypeError,
            r"Rule: config must be an OpConfig, or None to keep float32, got 8",
        ),
        (
            lambda: Policy(rules=["Dense"]),
            TypeError,
            r"Policy: rules must be a sequence of Rule, got 'Dense' among",
        ),
        (
            lambda: Policy(rules=Rule("x", None)),
            TypeError,
            r"Policy: rules must be a sequence of Rule, got Rule\(",
        ),
        (lambda: Policy(rules=None), TypeError, r"Policy: rules must be a sequence of Rule, got None"),
        (
            lambda: Policy(default=16),
            TypeError,
            r"Policy: default must be an OpConfig, or None to keep float32, got 16",
        ),
        (
            lambda: Position("dot", 0),
            ValueError,
            r"primitive must be one of 'conv_general_dilated', 'dot_general'",
        ),
        (
            lambda: Position("dot_general", "first"),
            TypeError,
            r"Position: index must be an integer, got 'first'",
        ),
        (lambda: Policy([Rule("x", None)]), TypeError, r"positional"),
    ],
)
def test_construction_is_checked(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_policies_are_values():
    make = lambda: Policy(rules=[Rule("a", None), Rule(policies.FIRST_CONV, OpConfig(bits=8))])  # noqa: E731
    assert make() == make() and hash(make()) == hash(make())
    assert make() != Policy()
    assert make().rules == (Rule("a", None), Rule(policies.FIRST_CONV, OpConfig(bits=8)))
    assert policies.paper() == policies.paper() != policies.default() == Policy()
    with pytest.raises(AttributeError):
        make().default = None


def test_strict_is_a_bool():
    with pytest.raises(TypeError, match="Policy: strict must be True or False, got 'yes'"):
        Policy(strict="yes")


def test_first_match_wins():
    first, second = Rule("Dense", None), Rule("Dense_0", OpConfig(bits=8))
    bound = Policy(rules=[first, second]).bind([])
    assert bound.decide(operation("Net/Dense_0")).rule is first
    bound = Policy(rules=[second, first]).bind([])
    assert bound.decide(operation("Net/Dense_0")).config == OpConfig(bits=8)
    assert bound.decide(operation("Net/Dense_1")).config is None
    decision = bound.decide(operation("Net/Conv_0"))
    assert (decision.rule, decision.config) == (None, OpConfig())


def test_rules_search_name_and_paths():
    bound = Policy(rules=[Rule(r"^params/Conv_\d/kernel$", None), Rule(r"Attention/", None)]).bind([])
    assert bound.decide(operation("Net/Conv_3", ["x", "params/Conv_3/kernel"])).config is None
    assert bound.decide(operation("Net/Attention/scores")).config is None
    assert bound.decide(operation("", [None, "params/Conv_3/bias"])).config == OpConfig()
    assert Policy(rules=[Rule("", None)]).bind([]).decide(operation("")).config is None


def test_positions():
    conv = [operation(f"C{i}", primitive="conv_general_dilated") for i in range(3)]
    dots = [operation(""), operation("")]
    backward = [operation("C0", primitive="conv_general_dilated", derived=True), operation("", derived=True)]
    bound = policies.paper().bind([conv[0], dots[0], conv[1], dots[1], conv[2], *backward])
    kept = [op for op in [*conv, *dots, *backward] if bound.decide(op).config is None]
    assert kept == [conv[0], dots[1], backward[0]]


def test_a_position_that_is_not_there_matches_nothing():
    bound = Policy(rules=[Rule(Position("dot_general", 2), None)]).bind([operation(), operation()])
    assert bound.decide(operation()).rule is None


def test_backward_operations_go_with_their_layer():
    features = object()
    weight = operation("", [features, "w"])
    bound = Policy(rules=[Rule(policies.LAST_DOT, None)]).bind([operation("", [None, "v"]), weight])
    assert bound.decide(operation("", [object(), "w"], derived=True)).config is None
    assert bound.decide(operation("", [object(), features], derived=True)).config is None
    assert bound.decide(operation("", [object(), "v"], derived=True)).config == OpConfig()
    assert (
        bound.decide(operation("", [None, "w"])).config == OpConfig()
    )  # another operation of the program itself


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            ("x", 16, 16),
            ValueError,
            "PerRole: lhs, rhs and cotangent must all be a value of .* got 'x', 16, 16",
        ),
        (("x", "y", "z"), ValueError, "PerRole: lhs, rhs and cotangent must all be a value of"),
        (
            (8, 8, None),
            TypeError,
            "PerRole: cotangent must be a value of OpConfig's bits, rounding, granularity or blocks",
        ),
        ((Blocks(), 8, Blocks()), ValueError, "PerRole: lhs, rhs and cotangent must all be a value of"),
        ((8, 1.5, 8), TypeError, "PerRole: rhs must be a value of OpConfig's bits, .* got 1.5"),
    ],
)
def test_values_of_no_field(values, error, message):
    with pytest.raises(error, match=message):
        PerRole(**dict(zip(("lhs", "rhs", "cotangent"), values, strict=True)))
