"""VGG-16 with the batches and epochs of Das et al. (arXiv 1802.00930): 60 epochs of batches of 256."""

from ml_collections import config_dict

from configs import imagenet


def get_config() -> config_dict.ConfigDict:
    """The configuration for ImageNet with these changes."""
    config = imagenet.get_config()
    config.model = "vgg16"
    config.epochs = 60
    config.batch_size = 256
    # Simonyan and Zisserman's recipe. They divided the rate by ten three times, whenever accuracy stopped
    # improving. They do not say when, so these shares are our choice.
    config.learning_rate = 0.01
    config.warmup = 0.0
    config.schedule = "step"
    config.boundaries = (20 / 60, 40 / 60, 50 / 60)
    config.weight_decay = 5e-4
    return config
