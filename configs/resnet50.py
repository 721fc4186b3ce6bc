"""ResNet-50, as Das et al. (arXiv 1802.00930) trained it: 90 epochs of batches of 1024."""

from ml_collections import config_dict

from configs import imagenet


def get_config() -> config_dict.ConfigDict:
    """The configuration for ImageNet with these changes."""
    config = imagenet.get_config()
    config.model = "resnet50"
    config.epochs = 90
    config.batch_size = 1024
    # The recipe of the authors' own trainer, libxsmm's GxM; their weight decay and momentum are the defaults.
    config.learning_rate = 0.1
    config.warmup = 5 / 90
    config.schedule = "step"
    config.boundaries = (30 / 90, 60 / 90, 80 / 90)
    return config
