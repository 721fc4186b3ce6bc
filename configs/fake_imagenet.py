"""ResNet-50 on synthetic images of ImageNet's size, to try and time the whole program without data."""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The defaults with these changes."""
    config = default.get_config()
    config.precision = "dfp16"
    config.model = "resnet50"
    config.dataset = "fake_imagenet"
    # The whole splits have as many images as ImageNet's.
    config.train_split = "train[:256]"
    config.test_split = "validation[:64]"
    config.image_size = 224
    config.flip = True
    config.epochs = 1
    config.batch_size = 32
    config.eval_batch_size = 32
    config.label_smoothing = 0.1
    return config
