"""The dynamic fixed point format, its JAX dtypes, and the reference arithmetic (Das et al., 2018, §3).

`format` defines the format, `arithmetic` computes on tensors in it, and `contraction` is the common form of
convolutions and dot products. `arithmetic` and `contraction` import `format`, but not each other.
"""

from dfpjax.numbers.arithmetic import operators as _operators  # noqa: F401 (gives the arrays their operators)
from dfpjax.numbers.contraction.accumulation import Accumulation as Accumulation
from dfpjax.numbers.contraction.accumulation import FixedChain as FixedChain
from dfpjax.numbers.format.array import DFP32Array as DFP32Array
from dfpjax.numbers.format.array import DFPArray as DFPArray
from dfpjax.numbers.format.blocks import Blocks as Blocks
from dfpjax.numbers.format.conversion import dequantize as dequantize
from dfpjax.numbers.format.conversion import quantize as quantize
from dfpjax.numbers.format.dtype import dfp16 as dfp16
from dfpjax.numbers.format.dtype import dfp32 as dfp32
from dfpjax.numbers.format.quantizer import Quantizer as Quantizer
from dfpjax.numbers.format.quantizer import Quantizers as Quantizers
