"""Rules for `jax.experimental.sparse.sparsify`, which raise an error: there are no sparse kernels."""

import functools

from dfpjax import _compat
from dfpjax.numbers.format.quantize import quantize_p
from dfpjax.operations.primitives import contract_linear_p


def _refuse(primitive, spenv, operand, *others, **params):
    shape = ",".join(map(str, operand.shape))
    raise NotImplementedError(
        f"sparsify: {primitive.name} of a convolution or dot product in dynamic fixed point got a sparse "
        f"operand of shape [{shape}], and has no sparse kernel. Either keep that layer in float32 with a "
        "rule dfpjax.Rule(name, None), or call todense() on the operand in front of it; dfpjax.explain of "
        "the function on dense arrays names the layers and their shapes."
    )


for _primitive in (quantize_p, contract_linear_p):
    _compat.sparse_rules[_primitive] = functools.partial(_refuse, _primitive)
