"""dfpjax: mixed-precision training on CPUs with 16-bit dynamic fixed point.

`mixed_precision(fun)` makes every convolution and dot product of a JAX function run with int16 operands, in native kernels.
"""

from dfpjax.numbers import DFPArray as DFPArray
from dfpjax.numbers import dequantize as dequantize
from dfpjax.numbers import dfp16 as dfp16
from dfpjax.numbers import quantize as quantize
