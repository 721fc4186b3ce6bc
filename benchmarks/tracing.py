"""Time what `mixed_precision` adds to tracing and lowering, on a Flax ResNet-50.

    python -m benchmarks.tracing

Three programs, each in float32 and transformed: the model's forward pass, the gradient of a loss and a
training step with SGD. Every repetition makes its functions anew, so that no cache of JAX's or of dfpjax's
knows them; both precisions take turns and the best of each counts. Tracing is the time from the call to the
jaxpr, lowering the time from there to StableHLO; both are this process's CPU time, since the machine is
shared. Nothing is compiled and nothing is run.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import jaxprs_in_params

import dfpjax
from dfpjax.training.models import ResNet50

MODEL = ResNet50(classes=1000)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
BATCH = 32


def arguments() -> dict[str, tuple]:
    """Types of each program's arguments."""
    images = jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    variables = jax.eval_shape(lambda x: MODEL.init(jax.random.key(0), x, train=False), images)
    state = variables, jax.eval_shape(OPTIMIZER.init, variables["params"])
    return {
        "forward": (variables, images),
        "gradient": (variables, images, labels),
        "training step": (state, images, labels),
    }


def programs(precision: str) -> dict:
    """The programs as fresh functions."""

    def apply(variables, images, train):
        return MODEL.apply(variables, images, train=train, mutable=["batch_stats"])

    if precision == "dfp16":
        apply = dfpjax.mixed_precision(apply)

    def forward(variables, images):
        return apply(variables, images, False)

    def loss(params, batch_stats, images, labels):
        logits, updated = apply({"params": params, "batch_stats": batch_stats}, images, True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

    def gradient(variables, images, labels):
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        return value_and_grad(variables["params"], variables["batch_stats"], images, labels)

    def step(state, images, labels):
        variables, momentum = state
        (value, updated), gradients = gradient(variables, images, labels)
        updates, momentum = OPTIMIZER.update(gradients, momentum)
        params = optax.apply_updates(variables["params"], updates)
        return ({"params": params, **updated}, momentum), value

    return {"forward": forward, "gradient": gradient, "training step": step}


def measure(program: str, precision: str, args: tuple) -> tuple[float, float, int]:
    """CPU seconds of tracing and of lowering, and the number of equations."""
    jitted = jax.jit(programs(precision)[program])
    start = time.process_time()
    traced = jitted.trace(*args)
    between = time.process_time()
    traced.lower(lowering_platforms=("cpu",))
    end = time.process_time()
    return between - start, end - between, equations(traced.jaxpr)


def equations(jaxpr) -> int:
    """Equations of a jaxpr, and of the jaxprs inside of it at each place that they stand."""
    eqns = getattr(jaxpr, "jaxpr", jaxpr).eqns
    return sum(1 + sum(map(equations, jaxprs_in_params(eqn.params))) for eqn in eqns)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args(argv).repetitions
    print("| ResNet-50 | | float32 | dfp16 | ratio |\n| --- | --- | ---: | ---: | ---: |")
    for program, args in arguments().items():
        measured = {"float32": [], "dfp16": []}
        for _ in range(repetitions):
            for precision, results in measured.items():
                results.append(measure(program, precision, args))
        float32, dfp16 = (tuple(map(min, *results)) for results in measured.values())
        for index, what in enumerate(("tracing", "lowering")):
            seconds = float32[index], dfp16[index]
            cells = [f"{1e3 * s:.0f} ms" for s in seconds]
            print(f"| {program} | {what} | {' | '.join(cells)} | {seconds[1] / seconds[0]:.2f} |")
        print(f"| {program} | equations | {float32[2]} | {dfp16[2]} | {dfp16[2] / float32[2]:.2f} |")


if __name__ == "__main__":
    main()
