"""Tensors of a network in training, taken from its layers."""

import string
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import JaxprEqn
from jax.extend.core.primitives import dot_general_p
from jax.typing import ArrayLike

from benchmarks.common.shapes import Conv, Dot, Einsum
from benchmarks.fidelity.interpreter import expose
from benchmarks.fidelity.tensors import Case, Operands


class Training:
    """Training in float32 that exposes the operands of single layers.

    The loss is evaluated operation by operation, and a zero added to a layer's output has the output's
    gradient as its own: the model is left as it is.

    Arguments:
        loss: of (variables, the number of the step, *batch): a scalar, and the variables other than "params"
            that it updates.
        variables: of a Flax model, with its "params".
        layers: paths of the convolutions and dot products to look at, such as ``Bottleneck_1/Conv_0``. The
            second one on a path has `` #2`` behind it. A convolution is square, in NHWC, has one group and
            symmetric padding.
        batch: arrays of the shapes that those of all batches have.
        optimizer: changes the parameters.

    Raises:
        ValueError: if the model has no such layer, or it is not as said above.
    """

    def __init__(
        self,
        loss: Callable,
        variables: dict,
        layers: list[str],
        batch: tuple[ArrayLike, ...],
        optimizer: optax.GradientTransformation,
    ):
        self._loss = loss
        self._layers = layers
        self._optimizer = optimizer
        self.variables = dict(variables)
        self._state = optimizer.init(self.variables["params"])
        self._steps = 0
        self.cases: dict[str, Case] = {}
        _, (_, outputs) = jax.eval_shape(
            self._exposed, self.variables["params"], {}, self.variables, 0, *batch
        )
        self._zeros = {name: jnp.zeros(tensors[2].shape) for name, tensors in outputs.items()}
        self._compiled_step = jax.jit(self._step)

    def _exposed(self, params, added: dict[str, jax.Array], variables, step, *batch):
        """The loss, and beside it the updated variables and each layer's (lhs, rhs, output)."""
        (loss, updated), exposed = expose(self._loss, added, {**variables, "params": params}, step, *batch)
        # A layer's path without the model's name.
        names = {name.partition("/")[2]: name for name in exposed.tensors}
        if missing := [name for name in self._layers if name not in names]:
            raise ValueError(f"Training: the model has no convolution or dot product {', '.join(missing)}")
        self._names = {layer: names[layer] for layer in self._layers}
        self.cases = {layer: _case(layer, exposed.equations[name]) for layer, name in self._names.items()}
        return loss, (updated, {name: exposed.tensors[name] for name in self._names.values()})

    def _step(self, variables, state, step, *batch):
        gradient = jax.value_and_grad(self._exposed, argnums=(0, 1), has_aux=True)
        params = variables["params"]
        (loss, (updated, seen)), (grads, dys) = gradient(params, self._zeros, variables, step, *batch)
        changes, state = self._optimizer.update(grads, state, params)
        variables = {**variables, **updated, "params": optax.apply_updates(params, changes)}
        return variables, state, loss, {name: (*seen[name][:2], dys[name]) for name in seen}

    def step(self, *batch: ArrayLike) -> float:
        """Train on one batch; returns the loss before it."""
        self.variables, self._state, loss, self._operands = self._compiled_step(
            self.variables, self._state, self._steps, *batch
        )
        self._steps += 1
        return float(loss)

    def operands(self, family: str) -> list[Operands]:
        """What the layers computed with in the last step, under that family's name.

        Of a layer inside a scan come four single steps, at the ends of the scan's quarters.
        """
        found = []
        for layer in self._layers:
            case, tensors = self.cases[layer], list(map(np.asarray, self._operands[self._names[layer]]))
            if tensors[0].shape == case.lhs:
                found.append(_operands(family, layer, case, tensors))
                continue
            length = len(tensors[0])
            for step in sorted({length * quarter // 4 for quarter in (1, 2, 3, 4)} - {0}):
                name = f"{layer}, step {step} of {length}"
                found.append(_operands(family, name, case, [tensor[step - 1] for tensor in tensors]))
        return found


def _operands(family: str, layer: str, case: Case, tensors) -> Operands:
    x, w, dy = tensors
    return Operands(family=family, layer=layer, case=case, x=x, w=w, dy=dy)


def _case(name: str, eqn: JaxprEqn) -> Case:
    """The operation of that equation."""
    lhs, rhs = (atom.aval.shape for atom in eqn.invars)
    out = eqn.outvars[0].aval.shape
    return _dot(eqn, lhs, rhs) if eqn.primitive is dot_general_p else _conv(name, eqn, lhs, rhs, out)


def _dot(eqn: JaxprEqn, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> Dot | Einsum:
    (contracted, batch) = eqn.params["dimension_numbers"]
    if len(lhs) == len(rhs) == 2 and contracted == ((1,), (0,)):
        return Dot(m=lhs[0], k=lhs[1], n=rhs[1], role="dense")
    letters = iter(string.ascii_lowercase)
    lhs_axes = [next(letters) for _ in lhs]
    shared = {
        theirs: lhs_axes[ours] for pair in (contracted, batch) for ours, theirs in zip(*pair, strict=True)
    }
    rhs_axes = [shared[axis] if axis in shared else next(letters) for axis in range(len(rhs))]
    out = [lhs_axes[axis] for axis in batch[0]]
    out += [axis for axis in lhs_axes if axis not in rhs_axes] + [
        axis for axis in rhs_axes if axis not in lhs_axes
    ]
    return Einsum(equation=f"{''.join(lhs_axes)},{''.join(rhs_axes)}->{''.join(out)}", lhs=lhs, rhs=rhs)


def _conv(name: str, eqn: JaxprEqn, lhs, rhs, out) -> Conv:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    padding, stride = params["padding"][0][0], params["window_strides"][0]
    case = Conv(lhs[0], lhs[-1], rhs[-1], rhs[0], lhs[1], stride, padding=max(padding, 0))
    is_nhwc = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec) == (
        (0, 3, 1, 2),
        (3, 2, 0, 1),
        (0, 3, 1, 2),
    )
    is_plain = (
        params["window_strides"] == (stride,) * 2
        and params["padding"] == ((padding,) * 2,) * 2
        and {*params["lhs_dilation"], *params["rhs_dilation"]} == {1}
    )
    if not is_nhwc or not is_plain or (case.lhs, case.rhs, case.out) != (lhs, rhs, out):
        raise ValueError(
            f"Training: layer {name} makes {out} of {lhs}; choose convolutions in NHWC that are square, in "
            "one group and symmetrically padded"
        )
    return case
