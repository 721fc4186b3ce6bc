"""Time a decoder-only transformer with frozen weights: prefill, tokens a second, memory, and agreement.

    python -m benchmarks.serving.decoder --model gpt2 --torch-python PYTHON --out results/decoder

The weights are random, in GPT-2's shapes. Beside it: the same program in float32, and PyTorch's decoder in
float32 and bfloat16. Greedy agreement is over the positions at which float32's two best logits differ by more
than 1e-3: of the prompt, and of the text that float32 generates after it. --out writes OUT.json and OUT.md.
"""

import argparse
import functools
import time
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import dfpjax
from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, add_allocator, cpu_model, use_allocator
from benchmarks.common.records import write_record
from benchmarks.common.torch_process import TorchProcess
from benchmarks.serving import model


def bytes_of(params) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(params))


def measure(shape: model.Shape, step, params, prompt: jax.Array, count: int, rounds: int) -> dict:
    """Seconds of the prefill and of a token; the logits of the prompt, and the tokens generated after it."""
    length = prompt.shape[1] + count
    cache = model.empty_cache(shape, 1, length)
    prefill = jax.jit(step)
    generate = jax.jit(functools.partial(model.generate, step, at=prompt.shape[1], count=count))
    seconds = {"prefill": float("inf"), "token": float("inf")}
    for _ in range(rounds + 1):
        start = time.perf_counter()
        logits, filled = jax.block_until_ready(prefill(params, cache, prompt, jnp.int32(0)))
        first = time.perf_counter() - start
        token = jnp.argmax(logits[:, -1], -1).astype(jnp.int32)
        start = time.perf_counter()
        tokens = jax.block_until_ready(generate(params, filled, token))
        rest = (time.perf_counter() - start) / count
        seconds = {"prefill": min(seconds["prefill"], first), "token": min(seconds["token"], rest)}
    tokens = jnp.concatenate([token[None], tokens])
    return {**seconds, "bytes": bytes_of(params), "logits": logits, "tokens": tokens}


def logits_along(shape: model.Shape, step, params, prompt: jax.Array, tokens: jax.Array) -> jax.Array:
    """The logits, [count, batch, vocabulary], after each of the tokens, int32[count, batch], that follow the
    prompt, read one at a time as in generation."""
    start = prompt.shape[1]
    cache = model.empty_cache(shape, 1, start + len(tokens))

    @jax.jit
    def along(params, cache):
        _, cache = step(params, cache, prompt, jnp.int32(0))

        def one(state, token):
            cache, at = state
            logits, cache = step(params, cache, token[:, None], at)
            return (cache, at + 1), logits[:, -1]

        return jax.lax.scan(one, (cache, jnp.int32(start)), tokens)[1]

    return along(params, cache)


def agreement(exact: jax.Array, other: jax.Array) -> tuple[float, int]:
    """The share of positions at which the greedy tokens agree, among those that are decided, and their
    number."""
    best = np.sort(np.asarray(exact), -1)[..., -2:]
    decided = best[..., 1] - best[..., 0] > 1e-3
    same = np.asarray(jnp.argmax(exact, -1) == jnp.argmax(other, -1))
    return float(same[decided].mean()), int(decided.sum())


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=model.SHAPES, default="gpt2")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--count", type=int, default=32, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--no-float32", action="store_true", help="frozen weights alone, for models that fill memory"
    )
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    add_allocator(parser)
    arguments = parser.parse_args(argv)
    prepare_output(parser, arguments.out)
    return arguments


def main(argv=None) -> dict:
    arguments = parse(argv)
    use_allocator(arguments.allocator, "benchmarks.serving.decoder")
    shape = model.SHAPES[arguments.model]
    params = model.init(shape, jax.random.key(0))
    prompt = jax.random.randint(jax.random.key(1), (1, arguments.prompt), 0, shape.vocabulary)
    step = functools.partial(model.forward, shape)
    one = jnp.zeros((1, 1), jnp.int32)
    frozen = dfpjax.freeze(params, fun=step, args=(model.empty_cache(shape, 1, 8), one, jnp.int32(0)))
    how = {"prompt": prompt, "count": arguments.count, "rounds": arguments.rounds}
    found = {}
    if not arguments.no_float32:
        found["jax float32"] = measure(shape, step, params, **how)
        tokens = found["jax float32"]["tokens"]
        generated = logits_along(shape, step, params, prompt, tokens)
    del params
    fast = dfpjax.mixed_precision(step)
    found["frozen"] = measure(shape, fast, frozen, **how)
    if not arguments.no_float32:
        texts = {
            "prompt": (found["jax float32"]["logits"], found["frozen"]["logits"]),
            "generated": (generated, logits_along(shape, fast, frozen, prompt, tokens)),
        }
        for text, pair in texts.items():
            share, decided = agreement(*pair)
            print(f"{text}: greedy tokens agree at {share:.2%} of {decided} decided positions")
            found["frozen"] |= {f"{text}_agreement": share, f"{text}_decided": decided}
    for own in found.values():
        del own["logits"], own["tokens"]
    if arguments.torch_python:
        torch = TorchProcess(arguments.torch_python, "benchmarks.serving.torch_decoder")
        for dtype in ("float32", "bfloat16"):
            case = {"shape": asdict(shape), "type": dtype, "threads": CORES}
            case |= {"prompt": arguments.prompt, "count": arguments.count, "rounds": arguments.rounds}
            found[f"torch {dtype}"] = torch.ask(**case)
        torch.close()
    lines = ["| | prefill, ms | tokens/s | weights, MB |", "| --- | ---: | ---: | ---: |"]
    for name, own in found.items():
        size = f"{own['bytes'] / 1e6:.0f}" if "bytes" in own else ""
        lines.append(f"| {name} | {1e3 * own['prefill']:.0f} | {1 / own['token']:.1f} | {size} |")
    title = f"{arguments.model}, prompt of {arguments.prompt}, {cpu_model()}, {CORES} cores"
    table = "\n".join(lines)
    print(f"{title}\n\n{table}")
    if arguments.out:
        write_record(
            arguments.out, {"model": arguments.model, "cpu": cpu_model(), "cores": CORES, "found": found}
        )
        arguments.out.with_name(f"{arguments.out.name}.md").write_text(f"{title}.\n\n{table}\n")
    return found


if __name__ == "__main__":
    main()
