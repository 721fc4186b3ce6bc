"""Winograd algorithms in the plain-JAX reference: values, bits, extremes, and what they do not take."""

import functools

import by_the_page_winograd as page
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from blocked import exact, normal, problem, wide
from by_the_page_winograd import F23, F25, F43, in_patches
from cases import COMPILED_QUICKLY, NCHW, SAME, conv, dot, passes
from winograd_cases import BOTH, CASES_IN_TIERS, OF_ONE_AXIS, TILES, of_case, of_taps, same

from dfpjax.numbers.contraction import algorithm
from dfpjax.numbers.contraction.algorithm import choose_algorithm, objection
from dfpjax.numbers.contraction.plan import CHAINS, make_plan
from dfpjax.numbers.contraction.reference import run_plan_chain_lengths
from dfpjax.numbers.format.blocks import Blocks, expanded
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT


@functools.partial(jax.jit, static_argnames="plan", compiler_options=COMPILED_QUICKLY)
def run(*operands, plan):
    return run_plan_chain_lengths(plan, *operands)


def reason_of(case, blocks=BOTH, **arguments):
    contraction, *shapes = case
    exponents = [
        (1,) * len(shape) if size is None else size.counts(shape)
        for shape, size in zip(shapes, blocks, strict=True)
    ]
    return objection(contraction, *shapes, *exponents, blocks, **arguments)


@pytest.mark.parametrize(("name", "which", "tiles"), CASES_IN_TIERS)
def test_values(name, which, tiles):
    case = of_case(name, which)
    plan, operands, values = problem(case, normal, blocks=BOTH, algorithm=tiles)
    (part,) = plan.parts
    assert part.tiles_along_k == (which == "wgrad")
    assert len(part.bounds) == (1 if name in OF_ONE_AXIS else 2)
    out, shares = run(*operands, plan=plan)
    bound = {4: 1.5e-4, 6: 4e-4}[part.points]
    assert oracle.relative_error(out, exact(case[0], *values)) < bound
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-5)


def test_several_blocks_and_splits_are_among_the_cases():
    for name, tiles in (("deep", "winograd4"), ("deep_5x5", "winograd2")):
        plan, *_ = problem(of_case(name, "fprop"), normal, blocks=BOTH, algorithm=tiles)
        assert plan.parts[0].blocks_per_split == 2
    for name in ("wide", "wide_5x5"):
        plan, *_ = problem(of_case(name, "wgrad"), normal, blocks=BOTH, algorithm="winograd2")
        assert plan.parts[0].blocks_per_split == 2  # of 12


@pytest.mark.parametrize(("tiles", "taps"), TILES)
def test_one_exponent_of_each_operand(tiles, taps):
    case = of_taps(taps, "fprop")
    plan, operands, values = problem(case, normal, blocks=(None, None), algorithm=tiles)
    assert oracle.relative_error(run(*operands, plan=plan)[0], exact(case[0], *values)) < 4e-4


# --- bits -----------------------------------------------------------------------------------------


def elements(mantissas, exponents, blocks):
    return np.asarray(mantissas, np.int64), expanded(np.asarray(exponents), mantissas.shape, blocks)


def out_of_tiles(y, images, shape, t):
    """Results [tiles, columns, t, t] as images [images, height, width, columns]."""
    counts = [-(-size // t) for size in shape]
    y = y.reshape(images, *counts, -1, t, t).transpose(0, 1, 4, 2, 5, 3)
    y = y.reshape(images, counts[0] * t, counts[1] * t, -1)
    return y[:, : shape[0], : shape[1]]


@pytest.mark.parametrize("data", [normal, wide])
@pytest.mark.parametrize("tile", [F23, F43, F25])
def test_the_bits_of_fprop_follow_from_the_page(tile, data):
    t, taps = tile
    case = passes(*conv((2, 6, 5, 262), (taps, taps, 262, 67), padding=same(taps)))["fprop"]
    plan, operands, _ = problem(case, data, blocks=BOTH, lost=data is wide, algorithm=f"winograd{t}")
    assert not plan.swapped
    x, w = (elements(operands[i], operands[i + 2], Blocks()) for i in (0, 1))
    fills = (0, page.ABSENT)
    a = [in_patches(z, taps // 2, (6, 5), tile, fill) for z, fill in zip(x, fills, strict=True)]
    b = [z.transpose(3, 2, 0, 1) for z in w]
    of_b, back = page.KERNEL[tile], page.OUTPUT[tile]
    expected = page.winograd(a, b, tile, of_b=of_b, back=back, block=256, blocks_per_split=2)
    expected = out_of_tiles(expected, 2, (6, 5), t)
    assert np.isnan(expected).any() == (data is wide) and not np.isnan(expected).all()
    np.testing.assert_array_equal(run(*operands, plan=plan)[0], expected)


@pytest.mark.parametrize("data", [normal, wide])
@pytest.mark.parametrize(("tile", "size"), [(F23, 21), (F43, 42), (F25, 21)])
def test_the_bits_of_wgrad_follow_from_the_page(tile, size, data):
    t, taps = tile
    case = passes(*conv((9, size, size, 7), (taps, taps, 7, 9), padding=same(taps)))["wgrad"]
    plan, operands, _ = problem(case, data, blocks=BOTH, lost=data is wide, algorithm=f"winograd{t}")
    (part,) = plan.parts
    assert part.blocks_per_split == 2  # of 9 blocks
    x, dy = (elements(operands[i], operands[i + 2], Blocks()) for i in (0, 1))
    shape, fills = (size, size), (0, page.ABSENT)
    a = [in_patches(z, taps // 2, shape, tile, fill) for z, fill in zip(x, fills, strict=True)]
    a = [z.swapaxes(0, 1) for z in a]
    b = [in_patches(z, 0, shape, tile, fill)[..., :t, :t] for z, fill in zip(dy, fills, strict=True)]
    b = [z.swapaxes(0, 1) for z in b]
    of_b, back = page.COTANGENT[tile], page.TAPS[tile]
    expected = page.winograd(a, b, tile, of_b=of_b, back=back, block=128, blocks_per_split=2)
    np.testing.assert_array_equal(run(*operands, plan=plan)[0], expected.transpose(2, 3, 0, 1))


@pytest.mark.parametrize(("tiles", "taps"), [("winograd4", 3), ("winograd2", 5)])
def test_xla_does_not_change_the_bits(tiles, taps):
    """With all of its optimizations it gives what it gives with none."""
    for which in ("fprop", "wgrad"):
        plan, operands, _ = problem(of_taps(taps, which), wide, blocks=BOTH, algorithm=tiles)
        optimized = jax.jit(functools.partial(run_plan_chain_lengths, plan))(*operands)[0]
        np.testing.assert_array_equal(optimized, run(*operands, plan=plan)[0])


# --- extremes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["fprop", "wgrad"])
@pytest.mark.parametrize(("tiles", "taps"), TILES)
@pytest.mark.parametrize("data", [oracle.full_scale, oracle.same_sign, oracle.alternating])
def test_no_chain_overflows(tiles, taps, which, data):
    case = passes(*conv((1, 8, 8, 258), (taps, taps, 258, 7), padding=same(taps)))[which]
    plan, operands, values = problem(case, data, blocks=(None, None), algorithm=tiles)
    out, _ = run(*operands, plan=plan)
    assert oracle.relative_error(out, exact(case[0], *values)) < 4e-4


def far_apart(rng, shape):
    """Values of which some are 2^110 times others, in blocks of their own."""
    x = rng.standard_normal(shape)
    x[..., 32:] *= 2.0**-55
    x[..., :32] *= 2.0**55
    return x


@pytest.mark.parametrize(("tiles", "taps"), TILES)
def test_exponents_that_are_far_apart(tiles, taps):
    """What is lost is far below the rest, and nothing overflows on the way."""
    for which in ("fprop", "wgrad"):
        case = passes(*conv((1, 6, 6, 64), (taps, taps, 64, 64), padding=same(taps)))[which]
        plan, operands, values = problem(case, far_apart, blocks=BOTH, algorithm=tiles)
        assert oracle.relative_error(run(*operands, plan=plan)[0], exact(case[0], *values)) < 4e-4


def test_an_exponent_whose_only_elements_are_zeros():
    """A row's exponent comes from a mantissa of zero, and its other elements are 2^100 times smaller."""
    case = passes(*conv((1, 4, 4, 64), (3, 3, 64, 8), padding=SAME))["fprop"]
    plan, operands, _ = problem(case, normal, blocks=BOTH, algorithm="winograd4")
    x, w, of_x, of_w = (np.array(operand) for operand in operands)
    x[..., :32], of_x[..., 0] = 0, 0
    x[..., 32:], of_x[..., 1] = 1, -100
    out, shares = run(x, w, of_x, of_w, plan=plan)
    assert not np.asarray(out).any()
    assert shares[0, 0] == 1  # no mantissa is left


@pytest.mark.parametrize(("tiles", "taps"), TILES)
def test_zeros_and_empty_sums(tiles, taps):
    case = of_taps(taps, "fprop")
    plan, operands, _ = problem(case, lambda rng, shape: np.zeros(shape), blocks=BOTH, algorithm=tiles)
    assert not np.asarray(run(*operands, plan=plan)[0]).any()


@pytest.mark.parametrize(
    ("tile", "reached"),
    [
        (F23, (slice(6, 9), slice(2, 6))),
        (F43, (slice(4, 9), slice(0, 8))),
        (F25, (slice(6, 9), slice(2, 8))),
    ],
)
def test_where_a_block_that_is_not_finite_reaches(tile, reached):
    t, taps = tile
    case = passes(*conv((2, 9, 9, 16), (taps, taps, 16, 40), padding=same(taps)))["fprop"]
    blocks = Blocks(rows=1, columns=16)
    plan, operands, _ = problem(case, normal, blocks=(blocks, blocks), algorithm=f"winograd{t}")
    finite = np.asarray(run(*operands, plan=plan)[0])
    x, w, of_x, of_w = (np.array(operand) for operand in operands)
    of_x[1, 9 * 8 + 4], of_w[0, 0, 2] = NONFINITE_EXPONENT - 14, NONFINITE_EXPONENT  # pixel (8, 4) of image 1
    out = np.asarray(run(x, w, of_x, of_w, plan=plan)[0])
    lost = np.zeros((2, 9, 9, 40), bool)
    lost[(1, *reached)] = True
    lost[..., 32:] = True
    np.testing.assert_array_equal(np.isnan(out), lost)
    # Chains can become longer where a row of a tile, or a column of a panel, is lost.
    np.testing.assert_allclose(out[~lost], finite[~lost], rtol=1e-5, atol=1e-4)


def test_each_example_has_exponents_of_its_own():
    contraction, lhs, rhs = of_case("same", "fprop")
    mapped = contraction.map(3, lhs=True, rhs=False)
    case = mapped, (3, *lhs), rhs
    _, (x, w, _, of_w), _ = problem(case, normal, blocks=(None, None), algorithm="winograd4")
    exponents = np.array([-3, 40, NONFINITE_EXPONENT]).reshape(3, 1, 1, 1, 1)
    batched = make_plan(mapped, x.shape, w.shape, exponents.shape, of_w.shape, algorithm="winograd4")
    out, shares = jax.jit(functools.partial(run_plan_chain_lengths, batched, examples=3))(
        x, w, exponents, of_w
    )
    assert shares.shape == (3, len(CHAINS)) and np.isnan(out[2]).all()
    one = make_plan(contraction, lhs, rhs, (1,) * 4, (1,) * 4, algorithm="winograd4")
    for i in range(2):
        np.testing.assert_array_equal(out[i], run(x[i], w, jnp.asarray(exponents[i]), of_w, plan=one)[0])


# --- what they take -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "which", "reason"),
    [
        (dot((7, 5), (5, 9), ((1,), (0,))), "fprop", "there is no window"),
        (conv((2, 8, 8, 8), (3, 3, 8, 8), (2, 2), SAME), "fprop", "a stride or dilation of 2"),
        (conv((2, 8, 8, 8), (3, 3, 8, 8), (2, 2), SAME), "dgrad", "a stride or dilation of 2"),
        (conv((2, 8, 8, 8), (3, 3, 8, 8), (2, 2), SAME), "wgrad", "a stride or dilation of 2"),
        (conv((2, 8, 8, 8), (3, 3, 8, 8), rhs_dilation=(2, 2)), "fprop", "a stride or dilation of 2"),
        (conv((2, 8, 8, 8), (1, 1, 8, 8)), "fprop", "its window has a single tap"),
        (conv((2, 8, 8, 8), (7, 7, 8, 8), padding=same(7)), "fprop", "has 7x7 taps, not 3x3 or 5x5"),
        (conv((2, 8, 8, 8), (7, 7, 8, 8), padding=same(7)), "wgrad", "has 7x7 taps, not 3x3 or 5x5"),
        (conv((2, 8, 8, 8), (3, 5, 8, 8), padding=SAME), "fprop", "its window has 3x5 taps, not 3x3 or 5x5"),
        (conv((2, 8, 8, 8), (1, 2, 8, 8)), "fprop", "its window has 2 taps, not 3 or 5"),
        (conv((2, 8, 8, 8), (3, 3, 1, 8), padding=SAME, feature_group_count=8), "fprop", "the result"),
        (conv((2, 8, 8, 1), (3, 3, 1, 8), padding=SAME), "fprop", "the innermost axis of the larger operand"),
        (conv((2, 3, 8, 8), (3, 3, 8, 8)), "fprop", "several axes of channels or of taps"),
        (conv((2, 7, 9, 8), (5, 7, 3, 3), padding=SAME, numbers=NCHW), "fprop", "the result"),
        (conv((0, 8, 8, 8), (3, 3, 8, 8), padding=SAME), "fprop", "there is nothing to compute"),
    ],
)  # fmt: skip
def test_what_they_do_not_take(case, which, reason):
    function, shapes, kwargs = case
    found = reason_of(passes(function, shapes, kwargs)[which])
    assert reason in found
    contraction, *shapes = passes(function, shapes, kwargs)[which]
    exponents = [(1,) * len(shape) for shape in shapes]
    with pytest.raises(ValueError, match="winograd2 is not possible: "):
        make_plan(contraction, *shapes, *exponents, algorithm="winograd2")


@pytest.mark.parametrize("which", ["fprop", "dgrad", "wgrad"])
def test_only_one_of_them_takes_windows_of_5_taps(which):
    for kernel, taps in (((5, 5, 8, 8), "5x5"), ((1, 5, 8, 8), "5")):
        case = passes(*conv((2, 8, 8, 8), kernel, padding=((kernel[0] // 2,) * 2, (2, 2))))[which]
        assert reason_of(case) is None and reason_of(case, algorithm="winograd2") is None
        expected = f"its window has {taps} taps, not {taps.replace('5', '3')} (winograd2 takes {taps})"
        assert reason_of(case, algorithm="winograd4") == expected


def test_exponents_and_accumulations_that_they_do_not_take():
    contraction, lhs, rhs = of_case("same", "fprop")
    per_channel = (1, 1, 1, rhs[-1])
    assert '"channel"' in objection(contraction, lhs, rhs, (1,) * 4, per_channel)
    assert "FixedChain" in objection(contraction, lhs, rhs, (1,) * 4, (1,) * 4, certified=False)
    assert reason_of((contraction, lhs, rhs)) is None
    assert reason_of((contraction, lhs, rhs), blocks=(None, Blocks())) is None


def choose(shapes, requested, which="fprop", **kwargs):
    contraction, lhs, rhs = passes(*conv(*shapes, padding=same(shapes[1][0]), **kwargs))[which]
    return choose_algorithm(contraction, lhs, rhs, (1,) * 4, (1,) * 4, requested=requested)


def test_the_choice():
    large = (2, 8, 8, 64), (3, 3, 64, 64)
    assert choose(large, "direct") == ("direct", "asked for")
    assert choose(large, "winograd2") == ("winograd2", "2.2x fewer products")
    assert choose(large, "winograd4") == ("winograd4", "4.0x fewer products")
    assert choose(large, "winograd4", "wgrad") == ("winograd4", "4.0x fewer products")
    assert choose(((2, 7, 7, 8), (3, 3, 8, 8)), "winograd4") == ("winograd4", "3.1x fewer products")
    assert choose(large, "winograd4", strides=(2, 2)) == ("direct", "a stride or dilation of 2")
    for which in ("fprop", "dgrad", "wgrad"):
        large_5x5 = (2, 8, 8, 64), (5, 5, 64, 64)
        assert choose(large_5x5, "winograd2", which) == ("winograd2", "2.8x fewer products")
        choice = choose(large_5x5, "winograd4", which)
        assert choice == ("direct", "its window has 5x5 taps, not 3x3 (winograd2 takes 5x5)")
    assert choose(((2, 7, 7, 8), (5, 5, 8, 8)), "winograd2") == ("winograd2", "2.1x fewer products")


def test_auto_takes_what_it_expects_to_be_fastest(monkeypatch):
    many = (32, 56, 56, 64), (3, 3, 64, 64)
    for which in ("fprop", "dgrad", "wgrad"):
        assert choose(many, "auto", which) == ("winograd4", "4.0x fewer products")
    assert choose(((1, 14, 14, 512), (3, 3, 512, 512)), "auto") == ("winograd2", "2.2x fewer products")
    few = (1, 7, 7, 512), (3, 3, 512, 512)  # the transform of the kernel takes longer than the products
    for which, other in (("fprop", "winograd2"), ("dgrad", "winograd2"), ("wgrad", "winograd4")):
        choice = choose(few, "auto", which)
        assert choice.algorithm == "direct" and choice.reason.startswith(f"{other} is expected to take ")
    assert choose(((32, 56, 56, 4), (3, 3, 4, 64)), "auto").algorithm == "direct"

    cost = algorithm.Cost(product=4, per_channel=0, per_tile=0)
    monkeypatch.setattr(algorithm, "COSTS", {(4, 3, 2, False): cost})
    choose_algorithm.cache_clear()
    assert choose(many, "auto") == ("direct", "winograd4 is expected to take 1.00x its time")
    assert choose(many, "auto", "wgrad") == ("direct", "no Winograd algorithm is ever faster")
    choose_algorithm.cache_clear()
    monkeypatch.setattr(algorithm, "COSTS", {(2, 5, 2, False): cost, (4, 3, 2, True): cost})
    of_5 = (32, 56, 56, 64), (5, 5, 64, 64)
    assert choose(of_5, "auto") == ("direct", "winograd2 is expected to take 1.44x its time")
    assert choose(of_5, "auto", "wgrad") == ("direct", "no Winograd algorithm is ever faster")
    choose_algorithm.cache_clear()


def test_the_encoding():
    """The header of a part, after those of the plan and of its grids."""
    for which, mode, of_split in (("fprop", 2, 1), ("wgrad", 3, 1)):
        plan, *_ = problem(of_case("same", which), normal, blocks=BOTH, algorithm="winograd4")
        (part,) = plan.parts
        header = plan.encode()[2 + 2 * 5 + 1 :][:11]
        assert plan.encode()[:2] == (3, 2) and header[0] == mode and header[4:6] == (of_split, 4)
        assert header[6:] == (len(part.g), len(part.m), len(part.n), len(part.k), 2)
    plan, *_ = problem(of_case("same", "fprop"), normal, blocks=(None, None))
    assert plan.encode()[:4] == (3, 0, 1, 0) and plan.encode()[8] == 0
