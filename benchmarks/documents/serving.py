"""The tables on frozen weights and on models of other libraries."""

from benchmarks.common.markdown import markdown
from benchmarks.documents import sources
from benchmarks.frameworks import results as of_frameworks
from benchmarks.serving import __main__ as of_products

_NAMES = {
    "jax float32": "JAX, float32",
    "frozen": "JAX, frozen",
    "torch float32": "PyTorch, float32",
    "torch bfloat16": "PyTorch, bfloat16",
}


def products() -> str:
    """Products of few rows with frozen matrices."""
    return of_products.table(sources.record("serving_products")["rows"])


def decoder() -> str:
    """GPT-2's shapes."""
    return _decoder("serving_decoder", "GPT-2 small, 124 M parameters")


def decoder_1b() -> str:
    """A model of a billion parameters."""
    return _decoder("serving_decoder_1b", "24 layers of 1792, 1.02 G parameters")


def _decoder(file: str, title: str) -> str:
    lines = []
    for name, found in sources.record(file)["found"].items():
        size = f"{found['bytes'] / 1e6:.0f}" if "bytes" in found else ""
        lines.append([_NAMES[name], f"{1e3 * found['prefill']:.0f}", f"{1 / found['token']:.1f}", size])
    return markdown([title, "prefill, ms", "tokens/s", "weights, MB"], lines)


def tokens(contender: str) -> str:
    """Tokens a second of the decoder in GPT-2's shapes."""
    return f"{1 / sources.record('serving_decoder')['found'][contender]['token']:.3g}"


def agreement(file: str) -> str:
    """Positions at which greedy tokens agree, such as `127 of 127`: of the prompt, and generated."""
    found = sources.record(file)["found"]["frozen"]
    parts = []
    for text in ("prompt", "generated"):
        decided = found[f"{text}_decided"]
        parts.append(f"{round(found[f'{text}_agreement'] * decided)} of {decided}")
    return " and ".join(parts)


def frameworks() -> str:
    """Errors of other libraries' models."""
    return of_frameworks.table([of_frameworks.Row(**row) for row in sources.record("frameworks")["rows"]])
