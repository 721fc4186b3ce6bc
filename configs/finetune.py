"""Fine-tuning of a pretrained ResNet-50 on a folder of your own photographs.

    dfpjax-train --config finetune --config.data_dir=PHOTOS --init_from=resnet50.safetensors --workdir=DIR

PHOTOS has train/CLASS/*.jpg and val/CLASS/*.jpg. The weights are a state dict of torchvision's or timm's
resnet50, or of another run. The last layer alone is trained, on features of a backbone whose kernels stay in
DFP16. To train everything afterwards, from the weights of that run:

    dfpjax-train --config finetune --config.data_dir=PHOTOS --init_from=DIR/weights/seed_0 \\
        --config.trained="()" --config.learning_rate=0.001 --workdir=ALL
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The defaults with these changes."""
    config = default.get_config()
    config.precision = "dfp16"
    config.model = "resnet50"
    config.trained = ("^Dense_0",)
    config.dataset = "image_folder"
    config.image_size = 224
    # Features of a pretrained backbone suffer from crops of a few percent of a photograph.
    config.min_crop_area = 0.35
    config.flip = True
    config.workers = 2
    config.epochs = 10
    config.batch_size = 32
    config.eval_batch_size = 32
    config.learning_rate = 0.01
    return config
