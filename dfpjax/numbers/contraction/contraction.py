"""`Contraction`: an einsum with convolution windows, the common form of all operations of the library.

One linear relation per spatial dimension ties the three tensors of a convolution. For input position h,
kernel tap r and output position i, in the notation of `lax.conv_general_dilated`,

    lhs_dilation · h  −  rhs_dilation · r  −  stride · i  =  −padding_low.

The relation treats the three tensors alike, and so do the labels of an einsum. Therefore fprop, dgrad and
wgrad have the same form and differ only in the tensors' roles (Das et al., 2018, §4.1). The transpose of a
contraction is a contraction, and a batched contraction (vmap) is a contraction with one more label.
"""

from dataclasses import dataclass, replace

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A relation between three labels: lhs_coef · i[lhs] + rhs_coef · i[rhs] + out_coef · i[out] = offset."""

    lhs: int
    rhs: int
    out: int
    lhs_coef: int
    rhs_coef: int
    out_coef: int
    offset: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Contraction:
    """out = Σ lhs · rhs over every index that the output's indices do not determine.

    Labels (small integers) name the axes. A label of lhs, rhs and out is a batch axis (such as a
    convolution's groups). A label of out and one operand is free, a label of both operands only is
    contracted. Each label of a window belongs to one tensor only.
    """

    lhs: tuple[int, ...]
    """Label of each axis of the left operand."""
    rhs: tuple[int, ...]
    out: tuple[int, ...]
    out_shape: Shape
    """The output's shape, because the operands' shapes do not determine windowed extents."""
    windows: tuple[Window, ...] = ()
    mapped: tuple[int, ...] = ()
    """Labels of axes that vmap added. Each index along them is an independent problem with its own
    exponents."""

    def swap(self) -> "Contraction":
        """The same sum with the operands exchanged."""
        windows = tuple(
            replace(w, lhs=w.rhs, rhs=w.lhs, lhs_coef=w.rhs_coef, rhs_coef=w.lhs_coef) for w in self.windows
        )
        return replace(self, lhs=self.rhs, rhs=self.lhs, windows=windows)

    def transpose(self, lhs_shape: Shape) -> "Contraction":
        """The transpose, with rhs fixed, of the map from lhs to out. Its lhs is the cotangent of out, its
        result the cotangent of lhs.

        Mapped labels that lhs lacks become leading axes of the result, and the caller sums over them. They
        cannot be contracted, because each example along them has its own exponents.
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
        """The leading labels of `transpose`'s result that lhs does not have."""
        return tuple(label for label in self.mapped if label not in self.lhs)

    def map(self, size: int, *, lhs: bool, rhs: bool) -> "Contraction":
        """Add a leading mapped axis of extent `size` to the output and to each operand whose argument is
        True."""
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
        """Axes that vmap added to a tensor with these labels. Each slice along them has its own exponent."""
        return tuple(axis for axis, label in enumerate(labels) if label in self.mapped)

    def slice_axes(self, labels: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of an operand with these labels along which each slice can have its own exponent: the free
        and batch axes, which the output has too. (A window's labels belong to one tensor only.)"""
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
