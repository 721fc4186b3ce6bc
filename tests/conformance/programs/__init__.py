"""Program shapes: every higher-order primitive of JAX, with an operation inside.

A program is a function of (op, w, x), where `op(w, x)` is a kind of operation: linear in each argument, with
a result of the shape of `x`.
"""

from conformance.programs import control_flow, nested, rules  # noqa: F401 (they fill the table)
from conformance.programs._program import PROGRAMS as PROGRAMS
from conformance.programs._program import Op as Op
from conformance.programs._program import Program as Program
