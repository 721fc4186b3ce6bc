"""Flax models. `MODELS` maps the names a configuration may use to functions of the number of classes."""

from .resnet import DigitsResNet as DigitsResNet
from .resnet import ResNet as ResNet
from .resnet import ResNet50 as ResNet50

MODELS = {"digits_resnet": DigitsResNet, "resnet50": ResNet50}
