"""The conformance matrix. `python -m pytest tests/conformance -m ""` prints it at the end.

A cell is a transformation of a program around a kind of operation. It checks that

- the jaxpr, inner jaxprs included, has no convolution or dot product in float32, the same number of
  operations in dynamic fixed point as the float32 program has operations (only outer products may be either),
  and results of the same types;
- values agree with the float32 program's within the error of 16-bit mantissas, and are not equal to them;
- mathematically equal transformations agree, above all `mixed_precision(grad(f))` and
  `grad(mixed_precision(f))`;
- `vmap` gives the bits of a loop over the examples, and adds no loop;
- a transformation that JAX refuses in float32 is refused with and without `mixed_precision`, by the message
  that the table in `programs` names. The message is checked, so such a cell cannot hide a failure.

A row is one program around one kind of operation. Jaxprs are checked for all programs and transformations,
around a dot product and around a convolution, and in the plain program for every kind of operation. Compiling
takes far longer than tracing, so values are compared in fewer cells. Under transformations marked
`everywhere` they are compared in every program around these two operations, and for every kind in the plain
program. Under all transformations they are compared in the programs of `THOROUGH` around the two operations.
`NESTED` is checked for every kind wherever all programs are.

The first tier has all transformations of the plain program around a dot product, and in every other row those
marked `everywhere`, by jaxprs alone around a convolution. The tier `slow` has the other cells. `_checks` says
how, and in which tier, each cell is checked.
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
    """The transformations of a row, and whether each is checked by values in addition to jaxprs."""
    if kind in MAIN:
        return {t.name: t.everywhere or name in THOROUGH for t in TRANSFORMATIONS.values()}
    if name == "plain":
        return {t.name: t.everywhere for t in TRANSFORMATIONS.values()}
    return {t.name: False for t in TRANSFORMATIONS.values() if t.everywhere}


def _quick_cells(name: str, kind: str) -> dict[str, bool]:
    """The part of `_cells` that is in the first tier."""
    cells = _cells(name, kind)
    everywhere = {t: values for t, values in cells.items() if TRANSFORMATIONS[t].everywhere}
    if kind == CONV.name:
        return dict.fromkeys(everywhere, False)
    return cells if (name, kind) == ("plain", DENSE.name) else everywhere


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
        except Exception as error:  # go on to check the other cells
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
    """Each refusal in the table applies to some transformation."""
    for program in PROGRAMS.values():
        met = {program.refusal(t.name, t.needs) for t in TRANSFORMATIONS.values()}
        assert set(program.refuses.values()) <= met, program.name
        assert set(program.accepts) <= set(TRANSFORMATIONS)
