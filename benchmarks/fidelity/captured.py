"""Tensors of a network in training, taken from its layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from benchmarks.common.shapes import Conv, Dot
from benchmarks.fidelity.tensors import Case, Operands


class Training:
    """Training in float32 with SGD that exposes the operands of single layers.

    Layers are found with `flax.linen.intercept_methods`, and a zero added to a layer's output has the
    output's gradient as its own: the model is left as it is.

    Arguments:
        model: a Flax classifier with batch norm that takes `train`.
        layers: paths of the convolutions and dense layers to look at, such as ``Bottleneck_1/Conv_0``. A
            convolution is square, has one group, and is padded by half of its kernel's size.
        images: a batch, of the shape that all of them have.
        learning_rate: of SGD with momentum 0.9.

    Raises:
        ValueError: if the model has no such layer, or it is not as said above.
    """

    def __init__(self, model: nn.Module, layers: list[str], images: ArrayLike, learning_rate: float = 0.01):
        self._model = model
        self._layers = layers
        self._optimizer = optax.sgd(learning_rate, momentum=0.9)
        init = jax.jit(model.init, static_argnames="train")
        self.variables = dict(init(jax.random.key(0), images, train=False))
        self._momentum = self._optimizer.init(self.variables["params"])
        self._cases: dict[str, Case] = {}
        labels = np.zeros(len(images), np.int32)
        _, (_, seen) = jax.eval_shape(
            self._loss, self.variables["params"], {}, self.variables, images, labels
        )
        if missing := [name for name in layers if name not in seen]:
            raise ValueError(f"Training: the model has no convolution or dense layer {', '.join(missing)}")
        self._zeros = {name: jnp.zeros(self._cases[name].out) for name in layers}
        self._compiled_step = jax.jit(self._step)

    def _loss(self, params, added: dict[str, jax.Array], variables, images, labels):
        """The loss, and beside it the new batch statistics and each layer's (input, kernel)."""
        seen = {}

        def intercept(function, args, kwargs, context):
            out = function(*args, **kwargs)
            module, name = context.module, "/".join(context.module.path)
            if name not in self._layers or not isinstance(module, nn.Conv | nn.Dense):
                return out
            seen[name] = args[0], module.variables["params"]["kernel"]
            self._cases[name] = _case(name, module, args[0].shape, out.shape)
            return out + added[name] if added else out

        with nn.intercept_methods(intercept):
            logits, updated = self._model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (updated, seen)

    def _step(self, variables, momentum, images, labels):
        gradient = jax.value_and_grad(self._loss, argnums=(0, 1), has_aux=True)
        params = variables["params"]
        (loss, (updated, seen)), (grads, dys) = gradient(params, self._zeros, variables, images, labels)
        changes, momentum = self._optimizer.update(grads, momentum)
        variables = {**updated, "params": optax.apply_updates(params, changes)}
        return variables, momentum, loss, {name: (*seen[name], dys[name]) for name in seen}

    def step(self, images: ArrayLike, labels: ArrayLike) -> float:
        """Train on one batch; returns the loss before it."""
        self.variables, self._momentum, loss, self._operands = self._compiled_step(
            self.variables, self._momentum, images, labels
        )
        return float(loss)

    def operands(self, family: str) -> list[Operands]:
        """What the layers computed with in the last step, under that family's name."""
        found = []
        for name in self._layers:
            x, w, dy = map(np.asarray, self._operands[name])
            found.append(Operands(family=family, layer=name, case=self._cases[name], x=x, w=w, dy=dy))
        return found


def _case(name: str, module: nn.Conv | nn.Dense, lhs: tuple[int, ...], out: tuple[int, ...]) -> Case:
    """The operation of a layer whose input and output have these shapes."""
    if isinstance(module, nn.Dense):
        case = Dot(m=lhs[0], k=lhs[1], n=out[1], role="dense")
    else:
        stride = np.broadcast_to(module.strides, 2)[0].item()
        case = Conv(lhs[0], lhs[3], out[3], module.kernel_size[0], lhs[1], stride)
    if case.lhs != lhs or case.out != out:
        raise ValueError(
            f"Training: layer {name} makes {out} of {lhs}; choose convolutions that are square, in one "
            "group and padded by half of their kernel's size, and dense layers of two axes"
        )
    return case
