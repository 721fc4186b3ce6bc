"""Uses the public API as programs do. It is not run: pyright checks it, in `tests/test_typing.py`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import dfpjax


def loss(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.sum(x @ params["w"])


fast: Callable[[dict[str, jax.Array], jax.Array], jax.Array] = dfpjax.mixed_precision(loss)


@dfpjax.mixed_precision
def decorated(x: jax.Array, scale: float) -> jax.Array:
    return x @ x * scale


@dfpjax.mixed_precision(policy=dfpjax.policies.paper())
def decorated_with_policy(x: jax.Array) -> jax.Array:
    return x @ x


policy = dfpjax.Policy(
    rules=[dfpjax.Rule(r"Dense_0$", None), dfpjax.Rule("Conv", dfpjax.OpConfig(bits=12, force=True))],
    default=dfpjax.OpConfig(rounding=dfpjax.PerRole(lhs="nearest", rhs="nearest", cotangent="stochastic")),
    strict=True,
)
with_policy: Callable[[dict[str, jax.Array], jax.Array], jax.Array] = dfpjax.mixed_precision(
    loss, policy=policy
)

report = dfpjax.explain(loss, {"w": jnp.ones((8, 8))}, jnp.ones((8, 8)), policy=policy)
coverage: float = report.coverage
names: list[str] = [op.name for op in report.ops]

folded, variables, fold_report = dfpjax.fold_batch_norm(loss, {"w": jnp.ones((8, 8))}, jnp.ones((8, 8)))
kernels: list[str] = [kernel for kernel, _ in fold_report.folded]

quantized: dfpjax.DFPArray = dfpjax.quantize(jnp.ones(8), bits=12, rounding="stochastic", seed=1)
values: jax.Array = quantized.dequantize()
blocked = dfpjax.quantize(jnp.ones((8, 8)), blocks=dfpjax.Blocks(rows=1, columns=32))
isa: str = dfpjax.runtime_info().isa
