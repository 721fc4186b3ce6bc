"""Which layer each operation of a program belongs to, and which roles its operands have there."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jax.extend.core import Var

from dfpjax.policy._config import Pass, Role
from dfpjax.policy._passes import Layers
from dfpjax.policy._rules import Operation
from dfpjax.transform._contractions import QUANTIZED
from dfpjax.transform._errors import source_line
from dfpjax.transform._survey import Body, Site

OperandName = Literal["input", "weight", "output_gradient"]

_OPERANDS: dict[Role, OperandName] = {"lhs": "input", "rhs": "weight", "cotangent": "output_gradient"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """An operation in dynamic fixed point, as part of a layer."""

    layer: str
    """The layer's name, else the path of its parameter, else its source line. `#1`, `#2` … tell layers of the
    same name apart."""

    kind: Pass | None
    operands: tuple[OperandName | None, OperandName | None]
    """What lhs and rhs are in the layer; None where that is unknown."""

    is_used: bool
    """Whether its result is used, and not only its operands."""


def places(body: Body) -> dict[Site, Place]:
    """The place of every operation in dynamic fixed point that is known to belong to one layer."""
    used = set(_used(body))
    sites = _sites(body, used)
    layers = Layers(site.operation for site in sites)
    layer_of = _layers(sites)
    found: dict[Site, tuple[Operation, Place]] = {}
    for site in sites:
        if site.eqn.primitive.name not in QUANTIZED:
            continue
        operation = site.operation
        part = layers.part(operation)
        layer = _only_one(operation, part.layer, layer_of)
        if layer is None:
            continue
        operands = tuple(_OPERANDS[role] for role in part.roles)
        if part.kind is None:
            is_linear = site.eqn.primitive.name == "dfp_contract_linear"
            operands = ("output_gradient" if is_linear else None, None)
        found[site] = layer, Place(layer="", kind=part.kind, operands=operands, is_used=site in used)
    names = _names(sites, {layer: None for layer, _ in found.values()})
    return {site: replace(place, layer=names[layer]) for site, (layer, place) in found.items()}


def _sites(body: Body, used: set[Site]) -> list[Site]:
    """The operations that make up the layers, given those whose results are used."""
    sites = [
        site
        for site in body.sites()
        # Leave out tangents, which `jax.jvp` computes next to their forward operation.
        if site.operation.derived or site.eqn.primitive.name != "dfp_contract_linear"
    ]
    wanted = set(used)
    # A gradient may need only the operands of its forward operation.
    known = {_name(site) for site in used if not site.operation.derived}
    for site in sites:
        if not site.operation.derived and _name(site) not in known:
            known.add(_name(site))
            wanted.add(site)
    return [site for site in sites if site in wanted]


def _used(body: Body) -> Iterator[Site]:
    """The operations whose results are used. Derivatives leave unused ones behind, which XLA removes."""
    needed = {v for v in body.jaxpr.outvars if isinstance(v, Var)}
    used = set()
    for index, eqn in reversed([*enumerate(body.jaxpr.eqns)]):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            used.add(index)
            needed.update(v for v in eqn.invars if isinstance(v, Var))
    for index, entry in body.found.items():
        if index not in used:
            continue
        if isinstance(entry, Site):
            yield entry
        else:
            for _, inner in entry.inside:
                yield from _used(inner)


def _layers(sites: Sequence[Site]) -> dict[Operation, Operation]:
    """The layer of each forward operation: the operation itself, or the one that it repeats."""
    forward = [site.operation for site in sites if not site.operation.derived]
    layer_of = {operation: operation for operation in forward}
    repeated: dict[str, list[Operation]] = defaultdict(list)
    for site in sites:
        if site.operation.recomputed:
            repeated[_name(site)].append(site.operation)
    originals: dict[str, list[Operation]] = defaultdict(list)
    for site in sites:
        if not site.operation.derived:
            originals[_name(site)].append(site.operation)
    for name, operations in repeated.items():
        same = originals.get(name, operations)
        if len(same) == 1:
            same = same * len(operations)
        if len(same) == len(operations):  # repeated in order
            layer_of.update(zip(operations, same, strict=True))
    return layer_of


def _only_one(
    operation: Operation, candidates: Sequence[Operation], layer_of: dict[Operation, Operation]
) -> Operation | None:
    """The one layer of all candidates or, failing that, of the candidates that share an operand with it."""
    sharing = [c for c in candidates if not ({*operation.operands} - {None}).isdisjoint(c.operands)]
    for some in (candidates, sharing):
        layers = {layer_of.get(candidate) for candidate in some}
        if len(layers) == 1:
            return layers.pop()
    return None


def _name(site: Site) -> str:
    operation = site.operation
    return operation.name or next(iter(operation.paths), "") or source_line(site.eqn) or "(no name)"


def _names(sites: Sequence[Site], layers: dict[Operation, None]) -> dict[Operation, str]:
    """A unique name for each layer, in program order."""
    of_name: dict[str, list[Operation]] = defaultdict(list)
    for site in sites:
        if site.operation in layers:
            of_name[_name(site)].append(site.operation)
    return {
        operation: name if len(operations) == 1 else f"{name}#{number}"
        for name, operations in of_name.items()
        for number, operation in enumerate(operations, start=1)
    }
