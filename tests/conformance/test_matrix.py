"""The conformance matrix; run as `python -m pytest tests/conformance -m ""`, it is printed at the end.

For a cell, a transformation of a program around a kind of operation:

- the jaxpr has no convolution and no dot product in float32 left, wherever it may stand, has as many
  operations in dynamic fixed point as the float32 program has operations (only outer products may be either),
  and results of the same types;
- values agree with the float32 program's within the error of 16-bit mantissas, and are not the same;
- what is the same mathematically agrees, above all `mixed_precision(grad(f))` and `grad(mixed_precision(f))`;
- `vmap` gives the bits of a loop over the examples, and adds no loop;
- what JAX refuses in float32 is refused with and without `mixed_precision`, by the message that the table in
  `programs` names. That the message comes is checked: such a cell cannot hide a failure.

A row is one program around one kind of operation. Jaxprs are checked in the full product of programs and
transformations, around a dot product and around a convolution, and in the plain program for every kind of
operation. To compile takes far longer, so values are compared under the transformations that are marked
`everywhere`, in every program with the two and for every kind in the plain program, and under all
transformations in the programs of `THOROUGH` with the two. `NESTED` is checked for every kind where all
programs are.

The transform sees a convolution and a dot product alike, so most cells that differ from those of the dot
product by the operation alone are in the tier `slow`: `_checks` says which cell is checked how and where.
"""

import pytest

from conformance.kinds import CONV, DENSE, KINDS
from conformance.matrix import Row
from conformance.programs import PROGRAMS
from conformance.transformations import TRANSFORMATIONS, Subject

MAIN = (DENSE.name, CONV.name)
THOROUGH = ("plain", "scan_of_remat", "while_loop")
NESTED = "scan_of_cond_of_remat_of_jit"

ROWS = [(name, kind) for name in PROGRAMS for kind in MAIN]
ROWS += [(name, kind) for name in ("plain", NESTED) for kind in KINDS if kind not in MAIN]


def _cells(name: str, kind: str) -> dict[str, bool]:
    """The transformations that a row is checked under: whether by values, besides jaxprs."""
    if kind in MAIN:
        return {t.name: t.everywhere or name in THOROUGH for t in TRANSFORMATIONS.values()}
    if name == "plain":
        return {t.name: t.everywhere for t in TRANSFORMATIONS.values()}
    return {t.name: False for t in TRANSFORMATIONS.values() if t.everywhere}


def _quick_cells(name: str, kind: str) -> dict[str, bool]:
    """Those of them in the first tier."""
    cells = _cells(name, kind)
    everywhere = {t: values for t, values in cells.items() if TRANSFORMATIONS[t].everywhere}
    if kind == CONV.name:
        return dict.fromkeys(everywhere, False)
    if kind == DENSE.name and name != "plain":
        return dict.fromkeys(cells, False) | everywhere
    return cells if kind == DENSE.name else everywhere


def _checks(name: str, kind: str, tier: str) -> dict[str, bool]:
    """The cells of a row that are checked in a tier, "quick" or "slow"."""
    cells, quick = _cells(name, kind), _quick_cells(name, kind)
    return quick if tier == "quick" else {t: v for t, v in cells.items() if (t, v) not in quick.items()}


def _rows(tier: str):
    rows = [row for row in ROWS if _checks(*row, tier)]
    return pytest.mark.parametrize(("name", "kind"), rows, ids=[f"{name}-{kind}" for name, kind in rows])


@_rows("quick")
def test_row(name, kind, record_property):
    _check(name, kind, "quick", record_property)


@pytest.mark.slow
@_rows("slow")
def test_rest_of_row(name, kind, record_property):
    _check(name, kind, "slow", record_property)


def _check(name: str, kind: str, tier: str, record_property):
    row = Row(Subject(PROGRAMS[name], KINDS[kind]))
    outcomes, errors = {}, []
    for transformation, values in _checks(name, kind, tier).items():
        try:
            outcomes[transformation] = row.check(TRANSFORMATIONS[transformation], values)
        except Exception as error:  # the other cells are checked all the same
            error.add_note(f"In the cell: {transformation}, where f is {name!r} around {kind!r}.")
            outcomes[transformation] = "failed"
            errors.append(error)
    record_property("conformance", {"program": name, "kind": kind, "outcomes": outcomes})
    if errors:
        raise ExceptionGroup(f"{len(errors)} cells of {name!r} around {kind!r}", errors)


def test_the_tiers_together_check_every_cell():
    for name, kind in ROWS:
        assert _checks(name, kind, "quick") | _checks(name, kind, "slow") == _cells(name, kind)


def test_every_refusal_is_met():
    """A refusal in the table that no transformation needs would be dead."""
    for program in PROGRAMS.values():
        met = {program.refusal(t.name, t.needs) for t in TRANSFORMATIONS.values()}
        assert set(program.refuses.values()) <= met, program.name
        assert set(program.accepts) <= set(TRANSFORMATIONS)
