"""Prints what `dfpjax.mixed_precision` makes of a Flax ResNet-50; nothing is computed, only traced.

python examples/explain_resnet50.py [paper]
"""

import sys

import jax
import jax.numpy as jnp

import dfpjax
from dfpjax.training.models import ResNet50


def main():
    model = ResNet50(classes=1000)
    images = jax.ShapeDtypeStruct((32, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    policy = dfpjax.policies.paper() if "paper" in sys.argv[1:] else dfpjax.policies.default()
    print(dfpjax.explain(model.apply, variables, images, train=False, policy=policy))


if __name__ == "__main__":
    main()
