"""`conv_general_dilated` in dynamic fixed point."""

from collections.abc import Sequence
from typing import get_args

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from dfpjax import _checks
from dfpjax.numbers import Quantizers
from dfpjax.numbers.contraction.accumulation import Accumulation
from dfpjax.numbers.contraction.algorithm import TILES, RequestedAlgorithm
from dfpjax.numbers.contraction.contraction import Contraction, Window
from dfpjax.numbers.format.explicit import permuted, permuted_sharding, reshaped, split_axis
from dfpjax.operations import primitives
from dfpjax.operations.dot import Problem, _require_float32, quantized, result_type
from dfpjax.operations.primitives import Backend


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    out_sharding: NamedSharding | PartitionSpec | None = None,
    quantizers: Quantizers = Quantizers(),  # noqa: B008 (frozen)
    accumulation: Accumulation = "certified",
    algorithm: RequestedAlgorithm = "auto",
    backend: Backend = "auto",
    witness: jax.Array | None = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` with both operands quantized, exact integer chains and float32 sums
    between them.

    Arguments:
        lhs, rhs: float32 arrays, the input and the kernel.
        window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
            batch_group_count: as in JAX; padding may be negative.
        out_sharding: on an explicit mesh, the result's sharding, as in JAX.
        quantizers: bits, rounding and granularity of the operands and of the cotangents.
        accumulation: "certified" for chains that cannot overflow, or a `FixedChain`.
        algorithm: "direct", or a Winograd algorithm of tiles of 2 or 4 outputs along each axis that has a
            window: "winograd2" or "winograd4". They round more and take fewer products: with windows of 3×3
            taps up to 2.25 and 4 times, with 5×5, which "winograd2" takes too, 2.8 times. Gradients use the
            algorithm, too, where it can compute them. "auto" takes what is expected to be the fastest for
            the shapes, for the operation and for each gradient by itself.
        backend: "auto" for native kernels where the platform has them, "reference" for plain JAX.
        witness: float32 of any shape with the largest magnitude of lhs, which saves a pass over lhs.

    Returns:
        float32 of the shape, and on an explicit mesh of the sharding, that `jax.lax.conv_general_dilated`
        gives.

    Raises:
        TypeError: if an operand is not float32.
        ValueError: if shapes and parameters do not fit (JAX's own message), if the accumulation does not suit
            the quantizers' bits, or if a Winograd algorithm is asked for that cannot compute the convolution:
            it takes windows of 3 taps ("winograd2": of 3 or of 5) along one or two axes without strides or
            dilations, certified accumulation, and the granularities "tensor" and "block".
    """
    problem = conv_problem(
        lhs,
        rhs,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        out_sharding=out_sharding,
        quantizers=quantizers,
        algorithm=algorithm,
    )
    operands, params = quantized(problem, quantizers, accumulation, backend, witness)
    if algorithm in TILES:
        choice = primitives.chosen_algorithm(primitives.contract_p, *operands, **params)
        if choice.algorithm != algorithm:
            raise ValueError(
                f"conv_general_dilated: algorithm={algorithm!r} cannot compute this convolution: "
                f'{choice.reason}. algorithm="auto" chooses one that can'
            )
    return problem.result(primitives.contract(*operands, **params))


def conv_problem(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    out_sharding: NamedSharding | PartitionSpec | None = None,
    quantizers: Quantizers = Quantizers(),  # noqa: B008 (frozen)
    algorithm: RequestedAlgorithm = "auto",
) -> Problem:
    """The contraction that a `conv_general_dilated` is, and its operands.

    If a quantizer has blocks, or a Winograd algorithm is asked for by name, its operands and result are
    channels-last.
    """
    _require_float32("conv_general_dilated", lhs=lhs, rhs=rhs)
    _checks.choice("conv_general_dilated", "algorithm", algorithm, get_args(RequestedAlgorithm))
    _checks.instance("conv_general_dilated", "quantizers", quantizers, Quantizers, "a Quantizers")
    spatial = lhs.ndim - 2

    def extents(name, value):
        wanted = f"one positive integer for each of {spatial} spatial axes"
        found = _checks.integers("conv_general_dilated", name, value, wanted)
        if len(found) != spatial or min(found, default=1) < 1:
            raise _checks.wrong_value("conv_general_dilated", name, wanted, value)
        return found

    window_strides = extents("window_strides", window_strides)
    lhs_dilation = (1,) * spatial if lhs_dilation is None else extents("lhs_dilation", lhs_dilation)
    rhs_dilation = (1,) * spatial if rhs_dilation is None else extents("rhs_dilation", rhs_dilation)
    for name, count in (
        ("feature_group_count", feature_group_count),
        ("batch_group_count", batch_group_count),
    ):
        _checks.integer("conv_general_dilated", name, count)
    wanted = f"a pair of integers for each of {spatial} spatial axes"
    if not isinstance(padding, Sequence) or isinstance(padding, str):
        raise _checks.wrong_type("conv_general_dilated", "padding", wanted, padding)
    padding = tuple(_checks.integers("conv_general_dilated", "padding", pair, wanted) for pair in padding)
    if len(padding) != spatial or any(len(pair) != 2 for pair in padding):
        raise _checks.wrong_value("conv_general_dilated", "padding", wanted, padding)
    try:
        numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    except (TypeError, ValueError) as error:
        raise type(error)(f"conv_general_dilated: dimension_numbers do not fit: {error}") from None

    def convolve(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            numbers,
            feature_group_count,
            batch_group_count,
            out_sharding=out_sharding,
        )

    out = result_type(convolve, lhs, rhs, out_sharding)

    # Labels: batch 0, output feature 1, input feature 2, group 3, then three for each spatial dimension.
    batch, out_feature, in_feature, group = range(4)
    windows = tuple(
        Window(
            lhs=4 + 3 * d,
            rhs=5 + 3 * d,
            out=6 + 3 * d,
            lhs_coef=lhs_dilation[d],
            rhs_coef=-rhs_dilation[d],
            out_coef=-window_strides[d],
            offset=-padding[d][0],
        )
        for d in range(spatial)
    )
    lhs_labels = _labels(numbers.lhs_spec, batch, in_feature, [w.lhs for w in windows])
    rhs_labels = _labels(numbers.rhs_spec, out_feature, in_feature, [w.rhs for w in windows])
    out_labels = _labels(numbers.out_spec, batch, out_feature, [w.out for w in windows])

    channels_last = quantizers.have_blocks or algorithm in TILES
    lhs_axes, rhs_axes, out_axes = _orders(numbers, channels_last=channels_last)
    lhs, lhs_labels = lax.transpose(lhs, lhs_axes), permuted(lhs_labels, lhs_axes)
    rhs, rhs_labels = lax.transpose(rhs, rhs_axes), permuted(rhs_labels, rhs_axes)
    out_shape, out_labels = permuted(out.shape, out_axes), permuted(out_labels, out_axes)
    sharding = permuted_sharding(out.sharding, out_axes)

    # Groups are a batch axis: split it off the axes that contain it.
    groups = max(feature_group_count, batch_group_count)
    if groups > 1:
        held = in_feature if feature_group_count > 1 else batch
        lhs, lhs_labels = _split(lhs, lhs_labels, held, group, groups)
        rhs, rhs_labels = _split(rhs, rhs_labels, out_feature, group, groups)
        sharding = split_axis(sharding, out_labels.index(out_feature), groups)
        out_shape, out_labels = _split_shape(out_shape, out_labels, out_feature, group, groups)
    contraction = Contraction(
        lhs=lhs_labels, rhs=rhs_labels, out=out_labels, out_shape=out_shape, windows=windows
    )
    return Problem("conv_general_dilated", lhs, rhs, contraction, sharding, out, out_axes, algorithm)


def _orders(numbers: lax.ConvDimensionNumbers, *, channels_last: bool) -> list[tuple[int, ...]]:
    """The axes of lhs, of rhs and of the result in the contraction's order.

    With `channels_last`, activations whose last axis is windowed become N…C, and a kernel whose windowed axes
    are not the outermost becomes …IO. No window then slides along the columns of blocks.
    """
    ndim = len(numbers.out_spec)
    spatial = range(2, ndim)
    batch, feature = numbers.lhs_spec[:2]
    # Indices in the specs of lhs, rhs and out.
    if batch < feature:
        orders = (0, *spatial, 1), (*spatial, 1, 0), (0, *spatial, 1)
    else:  # JAX's wgrad: lhs and rhs are activations whose batch is contracted, the result is the kernel's
        orders = (1, *spatial, 0), (1, *spatial, 0), (*spatial, 0, 1)
    return [
        permuted(spec, order)
        if channels_last and max(spec[2:], default=0) > order.index(ndim - 1)  # windowed axes lie further in
        else tuple(range(ndim))
        for spec, order in zip(numbers, orders, strict=True)
    ]


def _labels(spec: Sequence[int], first: int, second: int, spatial: Sequence[int]) -> tuple[int, ...]:
    """Label of each axis. `spec` gives the axes of the first, the second and the spatial labels."""
    labels = [0] * len(spec)
    for axis, label in zip(spec, (first, second, *spatial), strict=True):
        labels[axis] = label
    return tuple(labels)


def _split_shape(shape, labels, label: int, group: int, groups: int):
    axis = labels.index(label)
    shape = (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    return shape, (*labels[:axis], group, *labels[axis:])


def _split(x: jax.Array, labels, label: int, group: int, groups: int):
    sharding = split_axis(jax.typeof(x).sharding, labels.index(label), groups)
    shape, labels = _split_shape(x.shape, labels, label, group, groups)
    return reshaped(x, shape, sharding), labels
