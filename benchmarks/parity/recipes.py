"""The networks of `benchmarks.parity`, and the recipes by which they are trained."""

from benchmarks.parity.classifiers import TITLES, classifier
from benchmarks.parity.gan import gan_task
from benchmarks.parity.tasks import Recipe, Task
from benchmarks.parity.text import text_task

NAMES = (*TITLES, "lstm", "gan")


def _candidates(rates: tuple[float, float, float], length: int) -> list[Recipe]:
    """Each rate, and the middle one for twice as long."""
    return [*(Recipe(rate, length) for rate in rates), Recipe(rates[1], 2 * length)]


CANDIDATES = {
    "resnet": _candidates((0.05, 0.1, 0.2), 6),
    "vgg": _candidates((0.025, 0.05, 0.1), 6),
    "googlenet": _candidates((0.02, 0.04, 0.08), 4),
    "alexnet": _candidates((0.01, 0.02, 0.04), 5),
    "vit": _candidates((0.025, 0.05, 0.1), 8),
    "lstm": _candidates((0.004, 0.008, 0.016), 150),
    "gan": _candidates((0.0005, 0.001, 0.002), 600),
}
"""What is tried for each network on the validation split."""

# Of these, chosen by rules that docs/parity.md states.
_CHOSEN = {
    "resnet": Recipe(0.1, 6),
    "vgg": Recipe(0.05, 6),
    "googlenet": Recipe(0.04, 4),
    "alexnet": Recipe(0.02, 5),
    "vit": Recipe(0.05, 8),
    "lstm": Recipe(0.008, 150),
    "gan": Recipe(0.001, 600),
}


def recipe(name: str, *, quick: bool = False) -> Recipe:
    """The one by which a network is trained; `quick` trains next to nothing."""
    return Recipe(_CHOSEN[name].rate, 1) if quick else _CHOSEN[name]


def task(name: str, recipe: Recipe) -> Task:
    """A network with a recipe."""
    match name:
        case "lstm":
            return text_task(recipe)
        case "gan":
            return gan_task(recipe)
        case _:
            return classifier(name, recipe)
