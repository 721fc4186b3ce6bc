"""Operations: convolution and dot product in dynamic fixed point, as differentiable JAX primitives (Das et
al., 2018, §4.1)."""

from dfpjax.operations import exact_matmul as _exact_matmul  # noqa: F401 (rules that JAX is told of)
from dfpjax.operations import quantization as _quantization  # noqa: F401
from dfpjax.operations import series as _series  # noqa: F401
from dfpjax.operations import sparse as _sparse  # noqa: F401
from dfpjax.operations.conv import conv_general_dilated as conv_general_dilated
from dfpjax.operations.dot import dot_general as dot_general
from dfpjax.operations.saturation import SaturatedChains as SaturatedChains
from dfpjax.operations.saturation import saturated_chains as saturated_chains
