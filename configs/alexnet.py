"""AlexNet with the batches and epochs of Das et al. (arXiv 1802.00930): 88 epochs of batches of 1024."""

from ml_collections import config_dict

from configs import imagenet


def get_config() -> config_dict.ConfigDict:
    """The configuration for ImageNet with these changes."""
    config = imagenet.get_config()
    config.model = "alexnet"
    config.epochs = 88
    config.batch_size = 1024
    # Caffe's published recipe, since the paper does not give one: a rate of 0.01 for batches of 256, which
    # falls every 100,000 of 450,000 updates. Scaled with the square root of the batch size.
    config.learning_rate = 0.01 * (1024 / 256) ** 0.5
    config.warmup = 0.0
    config.schedule = "step"
    config.boundaries = (2 / 9, 4 / 9, 6 / 9, 8 / 9)
    config.weight_decay = 5e-4
    return config
