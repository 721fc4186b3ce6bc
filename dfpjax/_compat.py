"""Every private JAX symbol that dfpjax needs, in one place.

JAX keeps no compatibility promise for these names. When a new JAX release moves one of them, this file is
the only one to mend. Checked against JAX 0.10.2.
"""

# --- extended dtype -------------------------------------------------------------------------------
from jax._src import core as _core
from jax._src import dtypes as _dtypes
from jax._src import tree_util as _tree_util
from jax._src.interpreters import ad as _ad
from jax._src.interpreters import mlir as _mlir
from jax._src.interpreters import pxla as _pxla
from jax._src.sharding_impls import logical_sharding, physical_sharding

ExtendedDType = _dtypes.ExtendedDType
extended = _dtypes.extended
ShapedArray = _core.ShapedArray
physical_aval = _core.physical_aval
register_canonicalize_value_handler = _dtypes.register_canonicalize_value_handler
pytype_aval_mappings = _core.pytype_aval_mappings
shard_args = _pxla.shard_args
shard_arg_handlers = _pxla.shard_arg_handlers
global_result_handlers = _pxla.global_result_handlers
get_constant_handler = _mlir.get_constant_handler
register_constant_handler = _mlir.register_constant_handler
dispatch_registry = _tree_util.dispatch_registry
instantiate_zeros = _ad.instantiate_zeros

__all__ = [
    "ExtendedDType",
    "ShapedArray",
    "dispatch_registry",
    "extended",
    "get_constant_handler",
    "global_result_handlers",
    "instantiate_zeros",
    "logical_sharding",
    "physical_aval",
    "physical_sharding",
    "pytype_aval_mappings",
    "register_canonicalize_value_handler",
    "register_constant_handler",
    "shard_arg_handlers",
    "shard_args",
]
