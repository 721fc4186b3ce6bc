"""How many passes over the tensor XLA makes of batch norm, ReLU and quantization:
``python -m examples.fused_quantization``.

Prints the instructions of the compiled program that read or write a tensor as large as the activation.
Rounding is part of one fusion with the normalization and the activation function, from the network's float32
tensor straight to the 16-bit mantissas. Before it stand the reductions: mean, variance, and the largest
magnitude with the search for NaNs. XLA for CPU (jaxlib 0.10) gives fast reductions to a library that reads
them from memory, so what they reduce is written once for them.
"""

import re

import jax
import jax.numpy as jnp

import dfpjax

SHAPE = (32, 28, 28, 128)
# Instructions that move no data.
BOOKKEEPING = ("parameter", "tuple", "get-tuple-element", "bitcast")


def activation(x, scale, bias):
    """Batch norm and ReLU, quantized for the next convolution."""
    mean = jnp.mean(x, (0, 1, 2))
    variance = jnp.mean(jnp.square(x - mean), (0, 1, 2))
    y = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias)
    q = dfpjax.quantize(y)
    return q.mantissa, q.exponent


def passes(compiled: str) -> list[tuple[str, str]]:
    """(what is written, instruction) for each instruction that reads or writes a tensor of the activation's
    size. The branch that only a tiny tensor takes counts as one."""
    large = re.compile(r"\b(?:f32|s32|s16|u32|pred)\[" + ",".join(map(str, SHAPE)) + r"\]")
    entry = compiled[compiled.index("\nENTRY") :]
    found, types = [], {}
    for name, type_, opcode, rest in re.findall(
        r"^ +(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", entry, re.MULTILINE
    ):
        types[name] = type_
        operands = [
            types.get(operand, "") for operand in re.findall(r"%([\w.-]+)", rest.split("metadata")[0])
        ]
        if opcode not in BOOKKEEPING and any(map(large.search, [type_, *operands])):
            written = large.search(type_)
            found.append((written.group() if written else "-", f"{name} = {opcode}"))
    return found


def main() -> None:
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    channel = jax.ShapeDtypeStruct(SHAPE[-1:], jnp.float32)
    compiled = jax.jit(activation).lower(x, channel, channel).compile().as_text()
    found = passes(compiled)
    for written, instruction in found:
        print(f"{written:24} {instruction}")
    in_float32 = sum(written.startswith("f32") for written, _ in found)
    print(f"{len(found)} passes, {in_float32} of which write float32")


if __name__ == "__main__":
    main()
