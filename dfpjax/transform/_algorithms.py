"""Which algorithms compute the equations of a program."""

from jax.extend.core import JaxprEqn

from dfpjax.numbers.contraction.algorithm import TILES, Choice, RequestedAlgorithm
from dfpjax.operations.algorithms import contraction_algorithms, conv_algorithms
from dfpjax.policy._config import PASSES, Pass
from dfpjax.transform._contractions import conv_parameters
from dfpjax.transform._decide import Treatment, Verdict


def wanted_algorithm(eqn: JaxprEqn, treatment: Treatment) -> RequestedAlgorithm:
    """The algorithm to ask for where a convolution's equation is rewritten."""
    if treatment.algorithm not in TILES or treatment.required:
        return treatment.algorithm
    return _of_passes(eqn, treatment)["fprop"].algorithm


def algorithms(eqn: JaxprEqn, verdict: Verdict) -> dict[Pass, Choice]:
    """The algorithms of an equation with windows, by pass, as far as passes are computed in dynamic fixed
    point and known."""
    contraction = eqn.params.get("contraction")
    if contraction is not None and contraction.windows and eqn.primitive.name == "dfp_contract":
        found = contraction_algorithms(*(v.aval for v in eqn.invars), **eqn.params)
        return found._asdict()
    treatment = verdict.treatment
    if treatment is None or eqn.primitive.name != "conv_general_dilated":
        return {}
    found = _of_passes(eqn, treatment)
    if verdict.kind == "fprop":
        return {name: found[name] for name in PASSES if name in treatment.passes}
    return {} if verdict.kind is None else {verdict.kind: found["fprop"]}


def refusal(eqn: JaxprEqn, verdict: Verdict) -> str | None:
    """Why rewriting an equation is an error: the algorithm that is asked for by name is not possible."""
    treatment = verdict.treatment
    if treatment is None or eqn.primitive.name != "conv_general_dilated":
        return None
    if not treatment.required or treatment.algorithm not in TILES:
        return None
    found = _of_passes(eqn, treatment)["fprop"]
    return None if found.algorithm == treatment.algorithm else found.reason


def _of_passes(eqn: JaxprEqn, treatment: Treatment) -> dict[Pass, Choice]:
    lhs, rhs = (v.aval.shape for v in eqn.invars)
    return conv_algorithms(
        lhs,
        rhs,
        quantizers=treatment.quantizers,
        accumulation=treatment.accumulation,
        algorithm=treatment.algorithm,
        **conv_parameters(eqn),
    )._asdict()
