"""Common settings of the paper's networks: ILSVRC-2012, photographs of 1000 classes."""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The defaults with these changes."""
    config = default.get_config()
    config.dataset = "imagenet2012"
    config.test_split = "validation"
    config.image_size = 224
    config.flip = True
    # An evaluation step of VGG-16 takes 26 MB an image for its largest two layers alone.
    config.eval_batch_size = 64
    # A step takes seconds on a CPU.
    config.checkpoint_every = 100
    return config
