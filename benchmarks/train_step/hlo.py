"""The instructions of a compiled program, read from its HLO text."""

import functools
import math
import re
from dataclasses import dataclass, field, replace

BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"(pred|token|opaque|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)|branch_computations=\{([^}]*)\}")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction of any computation."""

    name: str
    shape: str
    """As written, such as `f32[2,3]{1,0}` or `(f32[2], s32[])`."""

    opcode: str
    operands: tuple[str, ...]
    calls: tuple[str, ...]
    """Names of computations."""

    op_name: str
    """The path of the JAX operation it comes from; what XLA added has that of an instruction that uses it, or
    else of one that it uses."""

    target: str
    """Of a custom call."""

    @property
    def bytes(self) -> int:
        """Of its result."""
        return sum(_bytes(*match) for match in _ARRAY.findall(self.shape))


def _bytes(dtype: str, bits: str, extents: str) -> int:
    bits = BITS[dtype] if dtype in BITS else int(bits)
    return math.prod(int(extent) for extent in extents.split(",") if extent) * bits // 8


def differentiated(op_name: str) -> bool:
    """Whether a path belongs to a differentiated operation or a derivative: JAX puts `jvp` into both."""
    return "jvp(" in op_name


@dataclass(frozen=True)
class Program:
    """A module: its instructions by name, which is unique in it, and the names in each computation."""

    instructions: dict[str, Instruction] = field(default_factory=dict)
    computations: dict[str, list[str]] = field(default_factory=dict)

    @functools.cached_property
    def differentiates(self) -> bool:
        """Whether something in it is differentiated or a derivative."""
        return any(differentiated(i.op_name) for i in self.instructions.values())

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """A fusion's instructions; any other instruction by itself."""
        if instruction.opcode != "fusion":
            return [instruction]
        return [self.instructions[name] for called in instruction.calls for name in self.computations[called]]

    def bytes_moved(self, instruction: Instruction) -> int:
        """What it reads and writes if it reads every operand once and nothing is in a cache."""
        return instruction.bytes + sum(self.instructions[name].bytes for name in set(instruction.operands))


def parse(text: str) -> Program:
    """The program of `jax.stages.Compiled.as_text()`."""
    program = Program()
    inside = None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            inside = program.computations.setdefault(head[1], [])
        elif inside is not None and (found := _LINE.match(line)):
            instruction = _instruction(found[1], found[2])
            program.instructions[instruction.name] = instruction
            inside.append(instruction.name)
    _name_all(program.instructions)
    return program


def _name_all(instructions: dict[str, Instruction]) -> None:
    """Give those without a path that of a neighbour."""
    # Text has operands before their users.
    for instruction in reversed(list(instructions.values())):
        for operand in instruction.operands:
            _inherit(instructions, operand, instruction)
    for instruction in list(instructions.values()):
        for operand in instruction.operands:
            _inherit(instructions, instruction.name, instructions[operand])


def _inherit(instructions: dict[str, Instruction], name: str, neighbour: Instruction) -> None:
    own = instructions[name]
    if not own.op_name and own.opcode not in ("parameter", "constant"):
        instructions[name] = replace(own, op_name=instructions[neighbour.name].op_name)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, rest = rest.split("(", 1)
    end = _closing(f"({rest}") - 1
    operands, attributes = rest[:end], rest[end:]
    calls = []
    for one, several in _CALLS.findall(attributes):
        calls += [one] if one else _NAME.findall(several)
    op_name = re.search(r'op_name="([^"]*)"', attributes)
    target = re.search(r'custom_call_target="([^"]*)"', attributes)
    return Instruction(
        name=name,
        shape=shape,
        opcode=opcode.strip(),
        operands=tuple(_NAME.findall(operands)),
        calls=tuple(calls),
        op_name=op_name[1] if op_name else "",
        target=target[1] if target else "",
    )


def _closing(text: str) -> int:
    """Where the parenthesis that `text` begins with is closed."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position
    raise ValueError(f"no closing parenthesis in {text!r}")
