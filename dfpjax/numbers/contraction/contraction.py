"""`Contraction`: an einsum with convolution windows, the one form that every operation of the library takes.

A convolution's three tensors are tied by one linear relation per spatial dimension. With the input at
position h, the kernel at tap r and the output at position i, and in the notation of
`lax.conv_general_dilated`,

    lhs_dilation · h  −  rhs_dilation · r  −  stride · i  =  −padding_low.

The relation treats the three alike, and so do the labels of an einsum. Hence fprop, dgrad and wgrad are
one and the same form with the tensors in other places (Das et al., 2018, §4.1), the transpose of a
contraction is a contraction, and a batched one (vmap) is a contraction with one more label.
"""

from dataclasses import dataclass, replace

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Ties three labels: lhs_coef · i[lhs] + rhs_coef · i[rhs] + out_coef · i[out] = offset."""

    lhs: int
    rhs: int
    out: int
    lhs_coef: int
    rhs_coef: int
    out_coef: int
    offset: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Contraction:
    """out = Σ lhs · rhs over every index that is not fixed by the output's.

    Labels (small integers) name the axes: one that lhs, rhs and out share is a batch axis (a convolution's
    groups); one of lhs and out, or of rhs and out, is free; one of lhs and rhs is contracted. Each label
    of a window stands in one tensor alone.
    """

    lhs: tuple[int, ...]
    """Label of each axis of the left operand."""
    rhs: tuple[int, ...]
    out: tuple[int, ...]
    out_shape: Shape
    """The output's shape; a windowed extent cannot be told from the operands'."""
    windows: tuple[Window, ...] = ()
    mapped: tuple[int, ...] = ()
    """Labels of axes added by vmap: each index along one is an independent problem, with its own
    exponents."""

    def swap(self) -> "Contraction":
        """The same sum with the operands exchanged."""
        windows = tuple(
            replace(w, lhs=w.rhs, rhs=w.lhs, lhs_coef=w.rhs_coef, rhs_coef=w.lhs_coef) for w in self.windows
        )
        return replace(self, lhs=self.rhs, rhs=self.lhs, windows=windows)

    def transpose(self, lhs_shape: Shape) -> "Contraction":
        """Transpose of the map from lhs to out, rhs held: takes out's cotangent as lhs and gives lhs's.

        A mapped label that lhs lacks is kept as the result's leading axes, for the caller to sum over:
        each of its examples is a contraction with exponents of its own.
        """
        windows = tuple(
            replace(w, lhs=w.out, out=w.lhs, lhs_coef=w.out_coef, out_coef=w.lhs_coef) for w in self.windows
        )
        kept = self.summed_by_transpose()
        sizes = dict(zip(self.out, self.out_shape, strict=True))
        return replace(
            self,
            lhs=self.out,
            out=kept + self.lhs,
            out_shape=tuple(sizes[label] for label in kept) + tuple(lhs_shape),
            windows=windows,
        )

    def summed_by_transpose(self) -> tuple[int, ...]:
        """The leading labels of `transpose`'s result that the transposed lhs does not have."""
        return tuple(label for label in self.mapped if label not in self.lhs)

    def map(self, size: int, *, lhs: bool, rhs: bool) -> "Contraction":
        """Add a leading mapped axis to the output and to the operands named."""
        label = 1 + max((*self.lhs, *self.rhs, *self.out), default=-1)
        return replace(
            self,
            lhs=(label, *self.lhs) if lhs else self.lhs,
            rhs=(label, *self.rhs) if rhs else self.rhs,
            out=(label, *self.out),
            out_shape=(size, *self.out_shape),
            mapped=(label, *self.mapped),
        )

    def mapped_axes(self, labels: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of a tensor with these labels that were added by vmap: each slice along them has its own
        exponent."""
        return tuple(axis for axis, label in enumerate(labels) if label in self.mapped)

    def slice_axes(self, labels: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of an operand with these labels along which a slice can have an exponent of its own, for the
        output has them too: free and batch axes. (A window's labels stand in one tensor alone.)"""
        return tuple(
            axis for axis, label in enumerate(labels) if label in self.out and label not in self.mapped
        )

    def __repr__(self) -> str:
        def letters(labels):
            return "".join(chr(ord("a") + i) if i < 26 else f"_{i}" for i in labels)

        windows = [
            f"{w.lhs_coef:+}{letters([w.lhs])}{w.rhs_coef:+}{letters([w.rhs])}{w.out_coef:+}{letters([w.out])}={w.offset}"
            for w in self.windows
        ]
        return " ".join([f"{letters(self.lhs)},{letters(self.rhs)}->{letters(self.out)}", *windows])
