"""Arithmetic on tensors in dynamic fixed point, entirely on integers (Das et al., 2018, §3.1).

| operands | `add`, `subtract`, `maximum` | `multiply`, `matmul` |
| --- | --- | --- |
| DFPArray, DFPArray | DFPArray | DFP32Array |
| DFPArray, DFP32Array | DFP32Array | refused: `down_convert` first |
| DFP32Array, DFP32Array | DFP32Array | refused |

Shapes broadcast as in NumPy, and exponents broadcast with them: if the operands have an exponent per slice,
so does the result. Where an operand has exponents of blocks, each element of the result has its own, but
functions of one operand that only change mantissas keep the blocks. A non-finite operand makes every result
NaN, a non-finite slice or block what depends on it. A result whose exponent would reach 2^19 is non-finite,
and one whose exponent would reach −2^19 is zero.

Derivatives are straight-through: they are the derivatives of the same function of the dequantized values.
"""
