"""Flax models. `MODELS` maps the names a configuration may use to functions of the number of classes.

All are called alike: `model.apply(variables, images, train=…, mutable=…, rngs={"dropout": …})` returns
the logits. What a model does not have, such as batch statistics, dropout or auxiliary heads, it ignores.
`CharLSTM` is not among them: it takes text.
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

# Each also takes `dtype`, that of its arithmetic.
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
