"""`OpConfig`: how one operation is computed in dynamic fixed point."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from dfpjax.numbers import Accumulation, Blocks, Quantizer, Quantizers
from dfpjax.numbers.contraction.accumulation import check_roles
from dfpjax.numbers.contraction.algorithm import TILES, RequestedAlgorithm
from dfpjax.numbers.format.quantizer import Granularity
from dfpjax.numbers.format.rounding import Rounding


@dataclass(frozen=True, kw_only=True)
class PerRole:
    """One value for each role that a tensor plays in an operation.

    For OpConfig's `bits`, `rounding`, `granularity` or `blocks`.

    Roles are those of the forward operation, also in its backward passes: dgrad takes a cotangent and the
    rhs, wgrad a cotangent and the lhs. `mixed_precision(jax.grad(f))` sees a program that contains its own
    backward pass. If the forward operation of one of its operations cannot be identified, the operands have
    their roles by position, lhs and rhs.

    Raises:
        TypeError: if a value is neither an integer nor a string nor a `Blocks`.
        ValueError: if the values cannot be of the same field. OpConfig refuses what its own field does not
            take.
    """

    lhs: Any
    """The left operand: a convolution's input, the first argument of a dot product."""

    rhs: Any
    """The right operand: a convolution's kernel, the second argument of a dot product."""

    cotangent: Any
    """The gradients that come back to the operation."""

    def __post_init__(self):
        values = {role: getattr(self, role) for role in ("lhs", "rhs", "cotangent")}
        for role, value in values.items():
            if not isinstance(value, int | str | Blocks) or isinstance(value, bool):
                raise TypeError(f"PerRole: {role} must be {_OF_A_FIELD}, got {value!r}")
        kinds = {kind for kind in (int, str, Blocks) for v in values.values() if isinstance(v, kind)}
        if len(kinds) > 1 or (kinds == {str} and not _WORDS.intersection(values.values())):
            raise ValueError(
                f"PerRole: lhs, rhs and cotangent must all be {_OF_A_FIELD}, and of the same field, got "
                f"{', '.join(map(repr, values.values()))}"
            )


_OF_A_FIELD = "a value of OpConfig's bits, rounding, granularity or blocks"

# Which of them a field takes is for OpConfig to say, which knows the field.
_WORDS = {*get_args(Rounding), *get_args(Granularity)}


Role = Literal["lhs", "rhs", "cotangent"]
Pass = Literal["fprop", "dgrad", "wgrad"]

ROLES: tuple[Role, ...] = get_args(Role)
PASSES: tuple[Pass, ...] = get_args(Pass)


@dataclass(frozen=True, kw_only=True)
class OpConfig:
    """How an operation and its gradients are computed in dynamic fixed point (Das et al., 2018, §4.1).

    `bits`, `rounding`, `granularity` and `blocks` take one value for all roles, or a `PerRole`. A pass that
    is switched off runs in float32, on the operands before quantization.

    Raises:
        ValueError: if a field is not one of the values named below.
    """

    bits: int | PerRole = 16
    """Bits of a mantissa, its sign included: 2 to 16."""

    rounding: str | PerRole = "nearest"
    """`"nearest"` (ties to even), `"stochastic"`, `"biased"` or `"truncate"`."""

    granularity: str | PerRole = "block"
    """`"block"`: one exponent for each block of the tensor's memory layout, which is the most exact.
    `"tensor"`: one exponent, as in the paper. `"channel"`: one exponent for each slice along the axes that
    the operand shares with the result and that no window slides over: the output channels of a kernel, the
    examples of an input, the free and batch axes of a dot's operand. `"channel"` and `"block"` exclude each
    other."""

    blocks: Blocks | PerRole = Blocks()  # noqa: RUF009 (frozen)
    """The size of blocks. It counts only where the granularity is `"block"`."""

    accumulation: Accumulation = "certified"
    """`"certified"`: chains cannot overflow, whatever the data. A `FixedChain`: the paper's method."""

    algorithm: str = "auto"
    """How a convolution and its gradients are computed.

    - `"auto"`: each of the three by what is expected to be the fastest of the following, given its shapes,
      so with the same bits on every machine.
    - `"direct"`: product by product, in most cases the most exact way.
    - `"winograd2"`, `"winograd4"`: by a Winograd algorithm, in tiles of 2 or 4 outputs along each axis of a
      window. Both take windows of 3 taps, and `"winograd2"` also those of 5. They round more and take fewer
      products: with 3×3 taps up to 2.25 and 4 times, with 5×5 taps 2.8 times. They need strides and dilations
      of 1, certified accumulation, and granularities other than `"channel"`. A convolution that they cannot
      compute is an error, so it needs a `Rule` of its own; a gradient that they cannot compute is direct.

    Dot products have no windows and are always direct. `dfpjax.explain` shows the algorithm of each pass."""

    fprop: bool = True
    """Whether the operation itself is computed in dynamic fixed point."""

    dgrad: bool = True
    """Whether the gradient with respect to lhs is computed in dynamic fixed point."""

    wgrad: bool = True
    """Whether the gradient with respect to rhs is computed in dynamic fixed point."""

    force: bool = False
    """Whether all this holds even where the cost rule expects float32 to be faster."""

    override_precision: bool = False
    """Whether all this holds even for operations that ask for more precision. Otherwise they stay as they
    are, also with `force`. An operation asks

    - if an operand or the result is float64, or its forward operation's;
    - if its `precision`, or `jax.default_matmul_precision` in its place, is `HIGHEST` (which JAX also calls
      `"float32"`) for at least one operand;
    - if its `precision` is a dot algorithm that gives operands more than 16 significant bits: `F32_F32_F32`,
      `F64_F64_F64`, and `TF32_TF32_F32_X3`, `BF16_BF16_F32_X6` and `BF16_BF16_F32_X9`, which emulate
      float32.

    `None`, `DEFAULT`, `HIGH` and the other algorithms do not ask. If overridden, float64 operands are
    converted to float32 before they are quantized."""

    def __post_init__(self):
        for switch in (*PASSES, "force", "override_precision"):
            if not isinstance(getattr(self, switch), bool):
                raise ValueError(f"OpConfig: {switch} must be True or False, got {getattr(self, switch)!r}")
        if not any(getattr(self, name) for name in PASSES):
            raise ValueError(
                f"OpConfig: one of {', '.join(PASSES)} must be True; to keep an operation and its gradients "
                "in float32, use None in place of an OpConfig"
            )
        if not isinstance(self.algorithm, str) or self.algorithm not in get_args(RequestedAlgorithm):
            algorithms = ", ".join(get_args(RequestedAlgorithm))
            raise ValueError(f"OpConfig: algorithm must be one of {algorithms}, got {self.algorithm!r}")
        quantizers = self.quantizers()
        try:
            check_roles(self.accumulation, quantizers)
        except ValueError as error:
            raise ValueError(f"OpConfig: {error}") from None
        if self.algorithm in TILES and self.accumulation != "certified":
            raise ValueError(
                f'OpConfig: algorithm={self.algorithm!r} needs accumulation="certified", '
                f"got {self.accumulation!r}"
            )

    def quantizers(self, lhs: Role = "lhs", rhs: Role = "rhs") -> Quantizers:
        """The quantizers that `dfpjax.operations` takes, for operands that play these roles."""
        parts = {"lhs": lhs, "rhs": rhs, "cotangent": "cotangent"}
        quantizers = {operand: self._quantizer(role) for operand, role in parts.items()}
        try:
            return Quantizers(**quantizers)
        except ValueError as error:
            raise ValueError(f"OpConfig: {error}") from None

    def _quantizer(self, role: str) -> Quantizer:
        values = {field.name: getattr(self, field.name) for field in fields(Quantizer)}
        per_role = any(isinstance(value, PerRole) for value in values.values())
        try:
            return Quantizer(**{name: _of_role(value, role) for name, value in values.items()})
        except ValueError as error:
            raise ValueError(f"OpConfig{f', {role}' if per_role else ''}: {error}") from None

    def __repr__(self) -> str:
        changed = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return f"OpConfig({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


def _of_role(value: Any, role: str) -> Any:
    return getattr(value, role) if isinstance(value, PerRole) else value
