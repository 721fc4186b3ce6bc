"""`explain`: it lists what the transform does, and its counts equal counts by hand."""

import json
import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from forced import FORCED, forced
from jax import lax

from dfpjax.insight import explain
from dfpjax.policy import OpConfig, PerRole, Policy, Rule, policies
from dfpjax.transform import mixed_precision

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
W, X = jax.ShapeDtypeStruct((6, 6), jnp.float32), jax.ShapeDtypeStruct((4, 6), jnp.float32)


def f32(shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def layer(w, x):
    return jnp.tanh(x @ w)


def small_net(kernel, weight, image):
    with jax.named_scope("conv"):
        y = lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=DIMENSIONS)
    with jax.named_scope("dense"):
        return y.mean((1, 2)) @ weight


SMALL = jnp.ones((3, 3, 4, 8)), jnp.ones((8, 10)), jnp.ones((2, 16, 16, 4))


def test_a_small_network():
    report = explain(small_net, *SMALL, policy=FORCED)
    conv, dense = report.ops
    assert (conv.name, conv.path, conv.primitive) == ("conv", "kernel", "conv_general_dilated")
    assert (conv.lhs_shape, conv.rhs_shape, conv.out_shape) == ((2, 16, 16, 4), (3, 3, 4, 8), (2, 8, 8, 8))
    assert conv.macs == 2 * 8 * 8 * 8 * 3 * 3 * 4
    assert re.search(r"test_explain\.py:\d+$", conv.source)
    assert (dense.name, dense.path, dense.macs) == ("dense", "weight", 2 * 8 * 10)
    assert {op.dtype for op in report.ops} == {"dfp16"}
    assert report.coverage == 1.0
    assert report.macs == conv.macs + dense.macs
    assert (report.opaque, report.unmatched) == ((), ())


def test_rules_and_reasons():
    rule, unused = Rule("dense", None), Rule("Dense_7", OpConfig(bits=8))
    report = explain(small_net, *SMALL, policy=forced(unused, rule))
    conv, dense = report.ops
    assert (dense.dtype, dense.rule, dense.reason) == ("float32", rule, "Rule('dense', None)")
    assert (conv.dtype, conv.rule, conv.reason) == ("dfp16", None, "the policy's default")
    assert report.unmatched == (unused,)
    assert report.coverage == conv.macs / (conv.macs + dense.macs)
    assert "rules that matched nothing: Rule('Dense_7', OpConfig(bits=8))" in str(report)


def test_the_cost_rule_is_told_with_what_would_have_decided():
    rule = Rule("dense", OpConfig(bits=8))
    report = explain(small_net, *SMALL, policy=Policy(rules=[rule]))
    dense = report.ops[1]
    assert (dense.dtype, dense.rule) == ("float32", rule)
    expected = r"float32: 160 MAC, below [\d.]+ [kM]?MAC \(else Rule\('dense', OpConfig\(bits=8\)\)\)"
    assert re.fullmatch(expected, dense.reason)
    assert report.unmatched == ()
    assert dense.reason in str(report)

    (skinny,) = explain(jnp.matmul, *map(f32, [(1, 16384), (16384, 16384)])).ops
    expected = r"float32: 0\.99 MACs per element, below \d+ \(else the policy's default\)"
    assert re.fullmatch(expected, skinny.reason)
    (large,) = explain(jnp.matmul, *map(f32, [(512, 512), (512, 512)])).ops
    assert (large.dtype, large.reason) == ("dfp16", "the policy's default")


def test_an_obstacle_comes_before_the_cost():
    (op,) = explain(jnp.matmul, *map(f32, [(2, 1), (1, 2)])).ops
    assert op.reason == "nothing is summed (contraction of size 1)"


class ResNet(nn.Module):
    """Two basic blocks, one of them with a projection."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), use_bias=False, name="stem")(x)
        for features, stride in ((8, 1), (16, 2)):
            y = nn.relu(nn.Conv(features, (3, 3), (stride, stride), use_bias=False)(x))
            y = nn.Conv(features, (3, 3), use_bias=False)(y)
            if y.shape != x.shape:
                x = nn.Conv(features, (1, 1), (stride, stride), use_bias=False, name="projection")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x + y))
        return nn.Dense(10)(x.mean((1, 2)))


def conv_macs(batch, size, kernel, features_in, features_out):
    return batch * size * size * kernel * kernel * features_in * features_out


RESNET_MACS = [
    conv_macs(4, 32, 3, 3, 8),
    conv_macs(4, 32, 3, 8, 8),
    conv_macs(4, 32, 3, 8, 8),
    conv_macs(4, 16, 3, 8, 16),
    conv_macs(4, 16, 3, 16, 16),
    conv_macs(4, 16, 1, 8, 16),
    4 * 16 * 10,
]


@pytest.fixture(scope="module")
def resnet():
    image = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(ResNet().init, jax.random.key(0), image)
    return variables, image


def test_resnet(resnet):
    report = explain(ResNet().apply, *resnet, train=True, mutable=["batch_stats"], policy=policies.paper())
    assert [op.macs for op in report.ops] == RESNET_MACS
    assert [op.dtype for op in report.ops] == ["float32", *["dfp16"] * 5, "float32"]
    assert report.coverage == sum(RESNET_MACS[1:-1]) / sum(RESNET_MACS)
    names = ["stem", "Conv_0", "Conv_1", "Conv_2", "Conv_3", "projection", "Dense_0"]
    assert [op.name for op in report.ops] == [f"ResNet/{name}" for name in names]
    assert [op.path for op in report.ops] == [f"params/{name}/kernel" for name in names]
    assert all("test_explain.py" in op.source for op in report.ops)


def test_gradients_triple_the_count(resnet):
    def loss(params, variables, image):
        return ResNet().apply({**variables, "params": params}, image).sum()

    variables, image = resnet
    report = explain(jax.grad(loss), variables["params"], variables, image, policy=policies.paper())
    # The image's gradient is not needed. The inserted zeros in a strided convolution's dgrad do not count.
    assert report.macs == 3 * sum(RESNET_MACS) - RESNET_MACS[0]
    kept = sum(op.macs for op in report.ops if op.dtype == "float32")
    assert kept == 2 * RESNET_MACS[0] + 3 * RESNET_MACS[-1]


def test_what_is_transformed_already_is_counted(resnet):
    def loss(params, variables, image):
        return mixed_precision(ResNet().apply, FORCED)({**variables, "params": params}, image).sum()

    variables, image = resnet
    report = explain(jax.grad(loss), variables["params"], variables, image, policy=FORCED)
    assert report.coverage == 1.0
    assert report.macs == 3 * sum(RESNET_MACS) - RESNET_MACS[0]
    assert {op.primitive for op in report.ops} == {"dfp_contract", "dfp_contract_linear"}
    assert {op.reason for op in report.ops} == {"in dynamic fixed point already"}


def test_explain_says_what_the_transform_does(resnet):
    variables, image = resnet
    for policy in (Policy(), FORCED, policies.paper(), forced(Rule("Conv_[13]", None)), Policy(default=None)):
        report = explain(ResNet().apply, variables, image, policy=policy)
        done = explain(mixed_precision(ResNet().apply, policy), variables, image, policy=Policy(default=None))
        assert [op.dtype for op in done.ops] == [op.dtype for op in report.ops]
        assert [op.macs for op in done.ops] == [op.macs for op in report.ops]


def test_counts_inside_of_control_flow():
    def fun(w, x):
        x, _ = lax.scan(
            lambda c, _: (lax.scan(lambda c, _: (layer(w, c), None), c, length=3)[0], None), x, length=5
        )
        x = lax.while_loop(lambda c: c.sum() < 0, lambda c: layer(w, c), x)
        return lax.cond(x.sum() > 0, layer, lambda w, x: x @ w.T, w, x)

    report = explain(fun, W, X, policy=FORCED)
    assert [op.count for op in report.ops] == [15, 1, 1, 1]
    assert [op.macs for op in report.ops] == [15 * 4 * 6 * 6, *[4 * 6 * 6] * 3]
    assert [op.path for op in report.ops] == ["w"] * 4
    assert "15 x dot_general" in str(report)


def test_counts_of_shards():
    from jax.sharding import PartitionSpec as P

    count = len(jax.devices())
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(layer, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    x = jax.ShapeDtypeStruct((4 * count, 6), jnp.float32)
    report = explain(sharded, W, x, policy=FORCED)
    (op,) = report.ops
    assert (op.count, op.lhs_shape, op.macs) == (count, (4, 6), 4 * count * 6 * 6)
    assert op.manual_axes == ("data",)
    assert "in shard_map over data: 1 operations, with the exponents of each device's part" in str(report)


@pytest.mark.parametrize(
    ("fun", "args", "reason"),
    [
        (jnp.matmul, [(2, 3), (3, 2), jnp.int32], "int32 is not one of float32, bfloat16, float16, float64"),
        (jnp.matmul, [(2, 1), (1, 2), jnp.float32], "nothing is summed (contraction of size 1)"),
        (jnp.matmul, [(0, 3), (3, 2), jnp.float32], "an operand or the result is empty"),
    ],
)
def test_obstacles(fun, args, reason):
    *shapes, dtype = args
    report = explain(fun, *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes), policy=FORCED)
    (op,) = report.ops
    assert (op.dtype, op.rule, op.reason) == ("float32", None, reason)
    assert report.coverage == 0.0


def test_grouped_and_dilated_convolutions():
    def depthwise(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=DIMENSIONS, feature_group_count=8, rhs_dilation=(2, 2)
        )

    def upsampling(x, w):
        return lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=DIMENSIONS)

    (op,) = explain(depthwise, jnp.ones((1, 6, 6, 8)), jnp.ones((3, 3, 1, 8)), policy=FORCED).ops
    assert op.macs == 6 * 6 * 8 * 9
    (op,) = explain(upsampling, jnp.ones((1, 6, 6, 8)), jnp.ones((2, 2, 8, 4)), policy=FORCED).ops
    assert op.out_shape == (1, 12, 12, 4)
    assert op.macs == 6 * 6 * 8 * 4 * 4


def test_opaque_primitives_are_reported():
    def fun(w, x):
        def inner(x):
            return jax.pure_callback(lambda x: np.asarray(x), X, x)

        return jax.jit(inner)(x) @ w + inner(x)

    report = explain(fun, W, X, policy=FORCED)
    assert report.opaque == ("pure_callback",)
    assert "not entered: pure_callback" in str(report)


def test_provenance_follows_layout_changes_and_calls():
    def fun(params, x):
        kernel = params["dense"]["kernel"].T.reshape(6, 6).astype(jnp.bfloat16)[None][0]
        first = jax.jit(lambda w, x: x @ w.T)(kernel, x.astype(jnp.bfloat16))
        stacked = jnp.broadcast_to(params["stack"], (2, 6, 6))
        second, _ = lax.scan(
            lambda c, w: (jax.checkpoint(layer)(w, c), None), first, stacked.astype(jnp.bfloat16)
        )
        return jax.jit(lambda w: w * 1)(params["scaled"]) @ second.T

    params = {"dense": {"kernel": W}, "stack": W, "scaled": W}
    report = explain(fun, params, X, policy=FORCED)
    assert [op.path for op in report.ops] == ["dense/kernel", "stack", None]


def test_table():
    text = str(explain(small_net, *SMALL, policy=policies.paper()))
    header, rule, conv, dense, rule2, total = text.splitlines()
    assert header.split() == ["layer", "operation", "operands", "result", "MACs", "dtype", "gradients", "why"]
    assert set(rule) == {"─", " "} and rule == rule2
    assert conv.startswith("conv   conv_general_dilated  [2,16,16,4] x [3,3,4,8]  [2,8,8,8]  36,864  float32")
    assert "Rule(Position('conv_general_dilated', 0), None)" in conv
    assert dense.index("float32") == conv.index("float32") == header.index("dtype")
    assert total.split()[:6] == ["total", "0", "of", "2", "operations", "37,024"]
    assert "0.00% dfp16" in total
    assert str(explain(jnp.sin, X)).splitlines()[-1].startswith("total  0 of 0 operations")


def test_granularity_is_shown_where_it_is_not_the_default():
    def config(**fields):
        return OpConfig(force=True, **fields)

    of_roles = PerRole(lhs="block", rhs="tensor", cotangent="block")
    policy = Policy(
        rules=[
            Rule("conv", config(granularity="channel")),
            Rule("dense", config(granularity=of_roles)),
        ],
        default=config(granularity="tensor"),
    )

    def fun(kernel, x, w):
        with jax.named_scope("conv"):
            y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)
        with jax.named_scope("dense"):
            y = y @ w
        return (y @ w.T).sum()

    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 3, 4, 8), (2, 4, 4, 4), (8, 8))]
    gradient = jax.grad(fun, (0, 2))
    for function in (gradient, mixed_precision(gradient, policy)):
        report = explain(function, *args, policy=policy)
        lines = str(report).splitlines()[2:-2]
        shown = [re.search(r"dfp16( \S+)? ", line)[1] for line in lines]
        assert shown[:3] == [" channel", " block/tensor", " tensor"]
        assert [op.granularity for op in report.ops[:3]] == [
            ("channel", "channel"), ("block", "tensor"), ("tensor", "tensor")
        ]  # fmt: skip
        assert shown[3:] == [" tensor", " block/tensor", None, " block/tensor", " channel"]
    default = explain(gradient, *args, policy=FORCED)
    assert {op.granularity for op in default.ops} == {("block", "block")}
    assert not re.search("tensor|block", str(default))
    assert {op.granularity for op in explain(gradient, *args, policy=Policy(default=None)).ops} == {None}


def test_to_dicts_is_plain_data():
    records = explain(small_net, *SMALL, policy=policies.paper()).to_dicts()
    assert json.loads(json.dumps(records))[0]["name"] == "conv"
    assert records[1]["rule"] == "Rule(Position('dot_general', -1), None)"
    assert math.prod(records[1]["lhs_shape"]) == 16


def test_nothing_is_run():
    def fun(x):
        jax.debug.callback(lambda: pytest.fail("it ran"))
        return x @ x

    explain(fun, jnp.ones((2, 2)))


def test_misuse_is_told():
    with pytest.raises(TypeError, match=r"explain: policy must be a dfpjax.Policy, got 'paper'"):
        explain(layer, W, X, policy="paper")


# --- algorithms -----------------------------------------------------------------------------------


def two_convolutions(x, w, v):
    with jax.named_scope("body"):
        y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=DIMENSIONS)
    with jax.named_scope("stem"):
        y = lax.conv_general_dilated(y, w, (2, 2), "SAME", dimension_numbers=DIMENSIONS)
    with jax.named_scope("head"):
        return jnp.sum(y.mean((1, 2)) @ v)


CONVOLUTIONS = f32((2, 8, 8, 16)), f32((3, 3, 16, 16)), f32((16, 5))
STEM = Rule("stem", OpConfig(force=True))
OF_PASSES = ("fprop", "dgrad", "wgrad")


def test_the_algorithm_of_each_pass_and_why():
    report = explain(two_convolutions, *CONVOLUTIONS, policy=forced(STEM, algorithm="winograd4"))
    body, stem, head = report.ops
    assert body.algorithms == dict.fromkeys(OF_PASSES, "winograd4, 4.0x fewer products")
    assert stem.algorithms == dict.fromkeys(OF_PASSES, "direct: a stride or dilation of 2")
    assert head.algorithms == {}
    lines = str(report).splitlines()
    assert "  algorithm  " in lines[0]
    assert "  winograd4, 4.0x fewer products     the policy's default" in lines[2]
    assert "  direct: a stride or dilation of 2  Rule('stem'" in lines[3]
    json.dumps(report.to_dicts())


def test_auto_decides_about_each_pass_by_itself():
    def body(x, w):
        with jax.named_scope("body"):
            return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=DIMENSIONS)

    kernel = f32((3, 3, 256, 256))
    many, few = f32((32, 28, 28, 256)), f32((1, 14, 14, 256))
    (op,) = explain(body, many, kernel).ops
    assert op.algorithms == dict.fromkeys(OF_PASSES, "winograd4, 4.0x fewer products")
    (op,) = explain(body, few, kernel).ops
    assert op.algorithms["fprop"].startswith("winograd")
    assert op.algorithms["wgrad"].startswith("direct: winograd4 is expected to take ")


def test_an_algorithm_that_is_not_possible_is_shown_as_an_error():
    policy = forced(algorithm="winograd4")
    _, stem, _ = explain(two_convolutions, *CONVOLUTIONS, policy=policy).ops
    text = "winograd4 is not possible, an error: a stride or dilation of 2"
    assert stem.algorithms == dict.fromkeys(OF_PASSES, text)
    with pytest.raises(ValueError, match="of layer 'stem'"):
        jax.eval_shape(mixed_precision(two_convolutions, policy), *CONVOLUTIONS)


def test_algorithms_are_shown_only_where_there_is_a_choice():
    report = explain(two_convolutions, *CONVOLUTIONS, policy=FORCED)
    assert "algorithm" not in str(report)
    assert {text.split(":")[0] for op in report.ops for text in op.algorithms.values()} == {"direct"}
    tensor_wide = explain(two_convolutions, *CONVOLUTIONS, policy=policies.paper())
    assert [op.algorithms for op in tensor_wide.ops][1] == dict.fromkeys(OF_PASSES, "direct: asked for")


def test_algorithms_of_passes_in_float32_and_of_a_backward_pass():
    policy = forced(STEM, algorithm="winograd2", dgrad=False)
    body, *_ = explain(two_convolutions, *CONVOLUTIONS, policy=policy).ops
    assert body.algorithms == dict.fromkeys(("fprop", "wgrad"), "winograd2, 2.2x fewer products")
    ops = explain(jax.grad(two_convolutions, 1), *CONVOLUTIONS, policy=policy).ops
    assert [op.algorithms for op in ops if op.name == "body" and op.wgrad and not op.fprop] == [
        {"wgrad": "winograd2, 2.2x fewer products"}
    ]


def test_algorithms_of_what_is_in_dynamic_fixed_point_already():
    inner = mixed_precision(two_convolutions, forced(STEM, algorithm="winograd4"))
    body, stem, _ = explain(inner, *CONVOLUTIONS).ops
    assert body.algorithms == dict.fromkeys(OF_PASSES, "winograd4, 4.0x fewer products")
    assert stem.algorithms == dict.fromkeys(OF_PASSES, "direct: a stride or dilation of 2")


def test_gradients_with_other_algorithms_than_their_operation():
    def full(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), ((2, 2), (2, 2)), dimension_numbers=DIMENSIONS)

    report = explain(full, *CONVOLUTIONS[:2], policy=forced(algorithm="winograd4"))
    assert (
        "fprop winograd4, 2.8x fewer products; dgrad winograd4, 4.0x fewer products; "
        "wgrad direct: the innermost axis of the result is not one of channels" in str(report)
    )


def test_layers_of_one_class_are_told_apart():
    model = eqx.nn.MLP(in_size=16, out_size=4, width_size=16, depth=1, key=jax.random.key(0))

    def forward(model, x):
        return jax.vmap(model)(x)

    policy = Policy(rules=[Rule("layers/1", None)], default=OpConfig(force=True), strict=True)
    first, second = str(explain(forward, model, jnp.ones((8, 16)), policy=policy)).splitlines()[2:4]
    assert "Linear (layers/0/weight)" in first and " dfp16 " in first
    assert "Linear (layers/1/weight)" in second and " float32 " in second
