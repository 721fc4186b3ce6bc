"""dfpjax: mixed-precision training on CPUs with 16-bit dynamic fixed point.

`mixed_precision(fun)` runs the convolutions and dot products of any JAX function with int16 operands, in
native kernels, with float32 results and gradients. `explain` reports what it did with each operation and why,
`with_statistics` how well the tensors of a step suit the format, and `sensitivity` which layers need their
bits.
"""

from importlib.util import find_spec
from pkgutil import extend_path

# In a checkout Python finds these sources first, but the compiled extension is in the installed package.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"  # pyproject.toml reads it here

if find_spec("dfpjax._native") is None:
    from dfpjax._unbuilt import explanation

    raise ImportError(explanation(), name="dfpjax._native")

from dfpjax import _releases as _releases  # first: with the JAX that it reports, the others may not import
from dfpjax import checkpoint_policies as checkpoint_policies
from dfpjax import distributed as distributed
from dfpjax import numpy as numpy
from dfpjax.insight import History as History
from dfpjax.insight import LayerStatistics as LayerStatistics
from dfpjax.insight import OperandStatistics as OperandStatistics
from dfpjax.insight import PerPass as PerPass
from dfpjax.insight import explain as explain
from dfpjax.insight import plot_mantissas as plot_mantissas
from dfpjax.insight import sensitivity as sensitivity
from dfpjax.insight import with_statistics as with_statistics
from dfpjax.kernels import RuntimeInfo as RuntimeInfo
from dfpjax.kernels import export_checks as export_checks
from dfpjax.kernels import runtime_info as runtime_info
from dfpjax.numbers import Blocks as Blocks
from dfpjax.numbers import DFP32Array as DFP32Array
from dfpjax.numbers import DFPArray as DFPArray
from dfpjax.numbers import FixedChain as FixedChain
from dfpjax.numbers import dequantize as dequantize
from dfpjax.numbers import dfp16 as dfp16
from dfpjax.numbers import dfp32 as dfp32
from dfpjax.numbers import quantize as quantize
from dfpjax.policy import OpConfig as OpConfig
from dfpjax.policy import PerRole as PerRole
from dfpjax.policy import Policy as Policy
from dfpjax.policy import Rule as Rule
from dfpjax.policy import policies as policies
from dfpjax.serving import FrozenArray as FrozenArray
from dfpjax.serving import export as export
from dfpjax.serving import fold_batch_norm as fold_batch_norm
from dfpjax.serving import freeze as freeze
from dfpjax.serving import thaw as thaw
from dfpjax.transform import mixed_precision as mixed_precision
