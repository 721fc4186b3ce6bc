"""What `explain` returns: one record per operation, and a report that prints as a table."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dfpjax import _checks
from dfpjax.insight._figures import finished, new_figure
from dfpjax.numbers.format.quantizer import Granularity
from dfpjax.policy import Rule
from dfpjax.policy._config import Pass

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Dtype = Literal["dfp16", "float32"]


@dataclass(frozen=True, kw_only=True)
class OpRecord:
    """One convolution or dot product of a program, and what becomes of it."""

    name: str
    """Layer name, such as `ResNet/Bottleneck_3/Conv_1`; empty where no `jax.named_scope` is around it."""

    path: str | None
    """Path of an operand that is an argument, `params/Conv_0/kernel`: of one inside a container before
    others, of the right one before the left one."""

    primitive: str
    """The JAX primitive: `conv_general_dilated` or `dot_general`, or one of dfpjax's own."""

    source: str
    """`file:line` of the user's code that calls it."""

    lhs_shape: tuple[int, ...]
    rhs_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    """Extents may be symbolic, as those of the arguments."""

    count: int
    """How often it runs: the lengths of the scans around it, times the shards of a `shard_map`.

    The unknown trip count of a `while` counts as 1; every branch of a `cond` counts.
    """

    macs: int
    """Multiply-accumulate operations of all runs together, padding included. A variable of a symbolic extent
    counts as 128, or as the number nearest to it that its constraints allow."""

    dtype: Dtype
    """`dfp16` if it is computed in dynamic fixed point; `float32` if it stays as the program has it, whatever
    its types are."""

    fprop: Dtype | None
    """What the forward operation is computed in; None for an operation of the backward pass."""

    dgrad: Dtype | None
    """What the gradient with respect to the left operand is computed in, whether that is still to come or is
    this operation itself; None if this operation is another gradient."""

    wgrad: Dtype | None
    """The same for the gradient with respect to the right operand."""

    rule: Rule | None
    """The policy's rule that matched; None for the default, or if there was nothing to decide."""

    reason: str
    """Why, in words."""

    granularity: tuple[Granularity, Granularity] | None = None
    """Which numbers share an exponent in its left and in its right operand, as in `OpConfig`; None if it is
    computed in float32. The table shows it beside the dtype, unless it is `"block"` for both."""

    algorithms: Mapping[Pass, str] = field(default_factory=dict, hash=False)
    """The algorithm of each pass of a convolution in dynamic fixed point, and why: `winograd4, 4.0x fewer
    products`, `direct: a stride or dilation of 2`. `winograd4 is not possible, an error: ...` says that it is
    asked for by name, so that `mixed_precision` raises an error. Products are counted with those on padding
    and on what fills up tiles. The table shows algorithms if one of all operations is not direct."""

    manual_axes: tuple[str, ...] = ()
    """The axes of a mesh over which a `jax.shard_map` runs it device by device. An operand that differs along
    them has the exponents of each device's part, not those of the whole tensor. These are the same if the
    granularity is `"block"` and the parts are whole blocks, as parts of a batch are. The table has a note."""


@dataclass(frozen=True, kw_only=True)
class FusedRecord:
    """Something between operations that is computed in one pass over memory."""

    kind: str
    """`channel statistics`, `normalization` or `bias` (their gradients), `rectified normalization`,
    `rectified bias`, `rectified sum`, `maximum pooling`. Or, of an operation:

    - `exponent from statistics`: its input's largest magnitude is known without a pass;
    - `operand from rectification`, `operand from pooling`: the pass that rectifies or pools its input also
      quantizes it;
    - `cotangent from gradient`: the pass that computes the gradient by its result also quantizes it."""

    name: str
    """Layer name, as an operation's."""

    shape: tuple[int, ...]
    """The shape of the tensor that the pass reads, or no longer needs to read."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Every convolution and dot product of a program, and what became of it. Prints as a table."""

    ops: tuple[OpRecord, ...]
    """In program order."""

    opaque: tuple[str, ...]
    """Names of the primitives that could not be entered: what they compute stays as it is."""

    unmatched: tuple[Rule, ...]
    """Rules of the policy that matched nothing."""

    fused: tuple[FusedRecord, ...] = ()
    """What is computed in one pass, in program order."""

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of all operations."""
        return sum(op.macs for op in self.ops)

    @property
    def coverage(self) -> float:
        """The share of all MACs that runs in dynamic fixed point; 0 for a program without any."""
        return sum(op.macs for op in self.ops if op.dtype == "dfp16") / max(self.macs, 1)

    def to_dicts(self) -> list[dict[str, Any]]:
        """The operations as dictionaries of plain values, for a data frame or JSON; symbolic extents as
        text."""
        records = [dataclasses.asdict(dataclasses.replace(op, rule=None)) for op in self.ops]
        for record, op in zip(records, self.ops, strict=True):
            record["rule"] = None if op.rule is None else repr(op.rule)
            for name in ("lhs_shape", "rhs_shape", "out_shape"):
                record[name] = tuple(size if isinstance(size, int) else str(size) for size in record[name])
        return records

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Draw a bar of each operation's multiply-accumulates, coloured by its dtype.

        Arguments:
            path: file to write the picture to, if any; its suffix is the format.

        Raises:
            TypeError: if the path is none.
            ImportError: if matplotlib is not installed.
        """
        _checks.path("Report.plot", "path", path)
        figure = new_figure("Report.plot", 8, 1 + 0.22 * len(self.ops))
        axes = figure.add_subplot()
        for dtype in get_args(Dtype):
            places = [index for index, op in enumerate(self.ops) if op.dtype == dtype]
            axes.barh(places, [self.ops[index].macs for index in places], label=dtype)
        axes.set_yticks(range(len(self.ops)), _labels(self.ops), fontsize=7)
        axes.invert_yaxis()  # program order from the top
        axes.set_xlabel("multiply-accumulate operations")
        axes.legend(title=f"{self.coverage:.1%} in dfp16")
        return finished(figure, path)

    def __str__(self) -> str:
        quantized = [op for op in self.ops if op.dtype == "dfp16"]
        header = ["layer", "operation", "operands", "result", "MACs", "dtype", "gradients", "why"]
        rows = [_row(op, label) for op, label in zip(self.ops, _labels(self.ops), strict=True)]
        total = f"{len(quantized)} of {len(self.ops)} operations"
        total = ["total", total, "", "", f"{self.macs:,}", f"{self.coverage:.2%} dfp16", "", ""]
        if any(text.startswith("winograd") for op in self.ops for text in op.algorithms.values()):
            algorithms = ("algorithm", *map(_algorithms, self.ops), "")
            for row, text in zip((header, *rows, total), algorithms, strict=True):
                row.insert(-1, text)
        lines = table(header, rows, right=(4,), total=total)
        if self.fused:
            kinds = Counter(record.kind for record in self.fused)
            lines.append(f"in one pass: {', '.join(f'{count} x {kind}' for kind, count in kinds.items())}")
        if manual := [op for op in quantized if op.manual_axes]:
            axes = ", ".join(dict.fromkeys(axis for op in manual for axis in op.manual_axes))
            lines.append(
                f"in shard_map over {axes}: {len(manual)} operations, with the exponents of each device's "
                "part of an operand (the whole tensor's if parts are whole blocks)"
            )
        if self.opaque:
            lines.append(f"not entered: {', '.join(self.opaque)}")
        if self.unmatched:
            lines.append(f"rules that matched nothing: {', '.join(map(repr, self.unmatched))}")
        return "\n".join(lines)


def _row(op: OpRecord, label: str) -> list[str]:
    times = f"{op.count} x " if op.count > 1 else ""
    return [
        label,
        times + op.primitive,
        f"{_shape(op.lhs_shape)} x {_shape(op.rhs_shape)}",
        _shape(op.out_shape),
        f"{op.macs:,}",
        _dtype(op),
        _gradients(op),
        op.reason,
    ]


def _algorithms(op: OpRecord) -> str:
    """The algorithms of an operation's passes; one if they agree."""
    if len({*op.algorithms.values()}) == 1:
        return next(iter(op.algorithms.values()))
    return "; ".join(f"{name} {text}" for name, text in op.algorithms.items())


def _dtype(op: OpRecord) -> str:
    """The dtype, and the granularity of the operands if it is not the default: one if they agree."""
    names = dict.fromkeys(op.granularity or ())
    return op.dtype if [*names] in ([], ["block"]) else f"{op.dtype} {'/'.join(names)}"


def _labels(ops: Sequence[OpRecord]) -> list[str]:
    """What each operation is called. Where layers share a name, as those of one class do in Equinox, forward
    operations have their parameters' paths beside it."""
    paths: dict[str, set[str]] = {}
    for op in ops:
        if op.fprop is not None and op.path is not None:
            paths.setdefault(op.name, set()).add(op.path)
    shared = {name for name, found in paths.items() if name and len(found) > 1}

    def label(op: OpRecord) -> str:
        if op.name in shared and op.fprop is not None and op.path is not None:
            return f"{op.name} ({op.path})"
        return op.name or op.path or op.source or "(no name)"

    return [label(op) for op in ops]


def _gradients(op: OpRecord) -> str:
    """The dtypes of an operation's dgrad and wgrad, one if they agree; or which of the two it is itself."""
    if op.fprop is None:
        return f"is {'dgrad' if op.dgrad else 'wgrad'}" if op.dgrad or op.wgrad else "is one"
    return str(op.dgrad) if op.dgrad == op.wgrad else f"{op.dgrad}, {op.wgrad}"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int],
    total: Sequence[str] | None = None,
) -> list[str]:
    """Lines of a table with aligned columns. Columns in `right` are right-aligned; a total, if given, is the
    last line."""
    last = [] if total is None else [total]
    widths = [max(map(len, column)) for column in zip(header, *rows, *last, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    separator = "  ".join("─" * width for width in widths)
    lines = [line(header), separator, *map(line, rows)]
    return lines if total is None else [*lines, separator, line(total)]
