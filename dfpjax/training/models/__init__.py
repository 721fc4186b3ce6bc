"""Flax models. `MODELS` maps the model names of configurations to functions of the number of classes.

All models have the same interface: `model.apply(variables, images, train=…, mutable=…,
rngs={"dropout": …})` returns the logits. A model ignores arguments for features that it lacks, such as batch
statistics, dropout or auxiliary heads. `MODELS` does not contain `CharLSTM`, which takes text.
"""

from .alexnet import AlexNet as AlexNet
from .alexnet import DigitsAlexNet as DigitsAlexNet
from .googlenet import DigitsGoogLeNet as DigitsGoogLeNet
from .googlenet import GoogLeNet as GoogLeNet
from .lstm import CharLSTM as CharLSTM
from .resnet import DigitsResNet as DigitsResNet
from .resnet import ResNet as ResNet
from .resnet import ResNet50 as ResNet50
from .vgg import VGG as VGG
from .vgg import VGG16 as VGG16
from .vgg import DigitsVGG as DigitsVGG
from .vit import DigitsViT as DigitsViT
from .vit import ViT as ViT
from .vit import ViTS16 as ViTS16

# Each also takes `dtype`, the dtype of its arithmetic.
MODELS = {
    "alexnet": AlexNet,
    "googlenet": GoogLeNet,
    "resnet50": ResNet50,
    "vgg16": VGG16,
    "vit_s16": ViTS16,
    "alexnet_digits": DigitsAlexNet,
    "digits_resnet": DigitsResNet,
    "googlenet_digits": DigitsGoogLeNet,
    "vgg_digits": DigitsVGG,
    "vit_digits": DigitsViT,
}
