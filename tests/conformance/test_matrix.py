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

A row is one program around one kind of operation. Which cells are checked, and how:

- Jaxprs, for every pair of a program and a transformation, around a dot product or around a convolution, in
  turn. Under transformations marked `everywhere` around both.
- Jaxprs, for every pair of a kind and a transformation, in the plain program; and for every kind under
  transformations marked `everywhere` in `NESTED`.
- Values, which take far longer since they are compiled, in the rows `THOROUGH` under all transformations.
  Under those marked `everywhere` in every program around the two operations, and for every kind in the plain
  program.

The first tier has all transformations of the plain program around a dot product, and in every other row those
marked `everywhere`: by values where they are marked `first` and the operation is a dot product, otherwise by
jaxprs. The tier `slow` has the rest. `_checks` says how, and in which tier, each cell is checked.
"""

import pytest
from forced import TENSOR_WIDE

from conformance.kinds import CONV, DENSE, KINDS
from conformance.matrix import Row
from conformance.programs import PROGRAMS
from conformance.transformations import TRANSFORMATIONS, Subject

MAIN = (DENSE.name, CONV.name)
THOROUGH = [("plain", kind) for kind in MAIN] + [("scan_of_remat", CONV.name), ("while_loop", DENSE.name)]
NESTED = "scan_of_cond_of_remat_of_jit"

ROWS = [(name, kind) for name in PROGRAMS for kind in MAIN]
ROWS += [(name, kind) for name in ("plain", NESTED) for kind in KINDS if kind not in MAIN]


def _cells(name: str, kind: str) -> dict[str, bool]:
    """The transformations of a row, and whether each is checked by values in addition to jaxprs."""
    everywhere = {t.name: t.everywhere for t in TRANSFORMATIONS.values()}
    if (name, kind) in THOROUGH:
        return dict.fromkeys(TRANSFORMATIONS, True)
    if kind in MAIN:
        first = list(PROGRAMS).index(name) + MAIN.index(kind)
        alternate = list(TRANSFORMATIONS)[first % 2 :: 2]
        return {t: values for t, values in everywhere.items() if values or t in alternate}
    if name == "plain":
        return everywhere
    return {t: False for t, values in everywhere.items() if values}


def _quick_cells(name: str, kind: str) -> dict[str, bool]:
    """The part of `_cells` that is in the first tier."""
    cells = _cells(name, kind)
    if (name, kind) == ("plain", DENSE.name):
        return cells
    everywhere = [t for t in TRANSFORMATIONS.values() if t.everywhere]
    return {t.name: cells[t.name] and t.first and kind != CONV.name for t in everywhere}


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


@pytest.mark.parametrize("kind", [DENSE.name, pytest.param(CONV.name, marks=pytest.mark.slow)])
def test_one_exponent_for_a_tensor(kind):
    """The matrix has the default, an exponent for each block."""
    row = Row(Subject(PROGRAMS["plain"], KINDS[kind]), TENSOR_WIDE)
    for transformation in TRANSFORMATIONS.values():
        if transformation.everywhere:
            row.check(transformation, values=True)


def test_the_tiers_together_check_every_cell():
    for name, kind in ROWS:
        assert _checks(name, kind, "quick") | _checks(name, kind, "slow") == _cells(name, kind)


def test_every_pair_is_checked():
    for transformation in TRANSFORMATIONS:
        assert all(any(transformation in _cells(name, kind) for kind in MAIN) for name in PROGRAMS)
        assert all(transformation in _cells("plain", kind) for kind in KINDS)


def test_every_refusal_is_met():
    """Each refusal in the table applies to some transformation."""
    for program in PROGRAMS.values():
        met = {program.refusal(t.name, t.needs) for t in TRANSFORMATIONS.values()}
        assert set(program.refuses.values()) <= met, program.name
        assert set(program.accepts) <= set(TRANSFORMATIONS)
