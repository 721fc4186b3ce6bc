"""Arithmetic on tensors in dynamic fixed point, all of it on integers (Das et al., 2018, §3.1).

| operands | `add`, `subtract`, `maximum` | `multiply`, `matmul` |
| --- | --- | --- |
| DFPArray, DFPArray | DFPArray | DFP32Array |
| DFPArray, DFP32Array | DFP32Array | refused: `down_convert` first |
| DFP32Array, DFP32Array | DFP32Array | refused |

Shapes broadcast as NumPy's do, and exponents along with them: where one is shared by a slice of each operand,
the result has one for the slice too. A tensor that is not finite makes every result NaN. A result whose
exponent would exceed 2^19 counts as such a tensor, one with an exponent below −2^19 is zero.

Derivatives are straight-through: those of the same function of the dequantized values.
"""
