"""The networks of `benchmarks.parity`, and the recipes by which they are trained."""

from benchmarks.parity.classifiers import TITLES, classifier
from benchmarks.parity.gan import gan_task
from benchmarks.parity.tasks import Recipe, Task
from benchmarks.parity.text import text_task

NAMES = (*TITLES, "lstm", "gan")


CANDIDATES = {
    "resnet": [Recipe(0.05, 6), Recipe(0.1, 6)],
    "vgg": [Recipe(0.01, 10), Recipe(0.02, 10), Recipe(0.04, 10), Recipe(0.02, 20)],
    "googlenet": [Recipe(0.01, 8), Recipe(0.02, 8)],
    "alexnet": [Recipe(0.01, 8), Recipe(0.02, 8), Recipe(0.04, 8)],
    "vit": [Recipe(0.01, 12), Recipe(0.02, 12), Recipe(0.04, 12), Recipe(0.01, 24), Recipe(0.02, 24)],
    "lstm": [Recipe(0.004, 200), Recipe(0.008, 200), Recipe(0.016, 200), Recipe(0.032, 200)],
    "gan": [Recipe(0.0005, 800), Recipe(0.001, 800), Recipe(0.002, 800), Recipe(0.001, 1600)],
}
"""What is tried for each network on the validation split."""

# Of these, chosen by the rule in docs/results/parity.md.
_CHOSEN = {
    "resnet": Recipe(0.1, 6),
    "vgg": Recipe(0.02, 10),
    "googlenet": Recipe(0.02, 8),
    "alexnet": Recipe(0.02, 8),
    "vit": Recipe(0.01, 24),
    "lstm": Recipe(0.032, 200),
    "gan": Recipe(0.002, 800),
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
