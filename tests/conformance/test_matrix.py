"""The conformance matrix; run as `python -m pytest tests/conformance`, it is printed at the end.

For a cell, a transformation of a program around a kind of operation:

- the jaxpr has no convolution and no dot product in float32 left, wherever it may stand, has as many
  operations in dynamic fixed point as the float32 program has operations (only outer products may be either),
  and results of the same types;
- values agree with the float32 program's within the error of 16-bit mantissas, and are not the same;
- what is the same mathematically agrees, above all `mixed_precision(grad(f))` and `grad(mixed_precision(f))`;
- `vmap` gives the bits of a loop over the examples, and adds no loop;
- what JAX refuses in float32 is refused with and without `mixed_precision`, by the message that the table in
  `programs` names. That the message comes is checked: such a cell cannot hide a failure.

Jaxprs are checked in the full product of programs and transformations, around a dot product and around a
convolution, and for every kind of operation under all transformations of `PROGRAMS_OF_ALL_KINDS`. To compile
takes far longer, so values are compared under the transformations that are marked `everywhere`, in every
program with the two and for every kind in the plain program, and under all transformations in the programs of
`THOROUGH` with the two.
"""

import pytest

from conformance.kinds import CONV, DENSE, KINDS
from conformance.matrix import Row
from conformance.programs import PROGRAMS
from conformance.transformations import TRANSFORMATIONS, Subject

pytestmark = pytest.mark.usefixtures("compiled_quickly")

THOROUGH = ("plain", "scan_of_remat", "while_loop")
PROGRAMS_OF_ALL_KINDS = ("plain", "scan_of_cond_of_remat_of_jit")

ROWS = [(name, kind) for name in PROGRAMS for kind in (DENSE.name, CONV.name)]
ROWS += [(n, k) for n in PROGRAMS_OF_ALL_KINDS for k in KINDS if k not in (DENSE.name, CONV.name)]


@pytest.mark.parametrize(("name", "kind"), ROWS, ids=[f"{name}-{kind}" for name, kind in ROWS])
def test_row(name, kind, record_property):
    row = Row(Subject(PROGRAMS[name], KINDS[kind]))
    main = kind in (DENSE.name, CONV.name)
    outcomes, errors = {}, []
    for t in TRANSFORMATIONS.values():
        try:
            some = t.everywhere and (main or name == "plain")
            outcomes[t.name] = row.check(t, values=some or (main and name in THOROUGH))
        except Exception as error:  # the other cells are checked all the same
            error.add_note(f"In the cell: {t.name}, where f is {name!r} around {kind!r}.")
            outcomes[t.name] = "failed"
            errors.append(error)
    record_property("conformance", {"program": name, "kind": kind, "outcomes": outcomes})
    if errors:
        raise ExceptionGroup(f"{len(errors)} cells of {name!r} around {kind!r}", errors)


def test_every_refusal_is_met():
    """A refusal in the table that no transformation needs would be dead."""
    for program in PROGRAMS.values():
        met = {program.refusal(t.name, t.needs) for t in TRANSFORMATIONS.values()}
        assert set(program.refuses.values()) <= met, program.name
        assert set(program.accepts) <= set(TRANSFORMATIONS)
