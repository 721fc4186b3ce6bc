"""GoogLeNet with the batches and epochs of Das et al. (arXiv 1802.00930): 80 epochs of batches of 1024."""

from ml_collections import config_dict

from configs import imagenet


def get_config() -> config_dict.ConfigDict:
    """The configuration for ImageNet with these changes."""
    config = imagenet.get_config()
    config.model = "googlenet"
    config.epochs = 80
    config.batch_size = 1024
    # Caffe's published recipe, since the paper does not give one: a rate of 0.01 for batches of 32. Without
    # batch norm the rate cannot grow linearly with the batch, so it grows with its square root.
    config.learning_rate = 0.01 * (1024 / 32) ** 0.5
    config.warmup = 0.0
    config.schedule = "polynomial"
    config.power = 0.5
    config.weight_decay = 2e-4
    return config
