"""Numbers: the dynamic fixed point format, its JAX dtype, and the reference arithmetic (Das et al., 2018,
§3)."""

from dfpjax.numbers.accumulation import Accumulation as Accumulation
from dfpjax.numbers.accumulation import FixedChain as FixedChain
from dfpjax.numbers.array import DFP32Array as DFP32Array
from dfpjax.numbers.array import DFPArray as DFPArray
from dfpjax.numbers.array import dequantize as dequantize
from dfpjax.numbers.array import quantize as quantize
from dfpjax.numbers.dtype import dfp16 as dfp16
from dfpjax.numbers.dtype import dfp32 as dfp32
from dfpjax.numbers.quantize import Quantizer as Quantizer
from dfpjax.numbers.quantize import Quantizers as Quantizers
