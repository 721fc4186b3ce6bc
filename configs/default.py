"""Defaults of a training run; `dfpjax.training.TrainConfig` says which values each field takes."""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """A configuration with every field; the other files override some."""
    config = config_dict.ConfigDict()

    # float32, bfloat16 (the model's arithmetic; parameters stay float32), dfp16 (dfpjax's default policy),
    # dfp16_paper (first convolution and classifier stay float32), dfp16_stochastic (rounds at random),
    # dfp16_direct (no Winograd algorithms), or dfp16_forced and dfp16_forced_stochastic (nothing stays
    # float32, however small).
    config.precision = "float32"
    # A tuple with one run per seed: `--config.seed=0,1,2` makes three runs.
    config.seed = (0,)

    config.model = "digits_resnet"
    # Patterns of the parameters that are trained, such as ("^Dense_0",) for the last layer; () is all.
    config.trained = ()
    config.dataset = "digits"
    # None is the folder of tensorflow-datasets: $TFDS_DATA_DIR or ~/tensorflow_datasets. image_folder needs a
    # folder.
    config.data_dir = config_dict.placeholder(str)
    # TFDS split expressions; "train[:256]" makes a quick trial.
    config.train_split = "train"
    config.test_split = "test"

    config.epochs = 90
    config.batch_size = 64
    # Parts of a batch that are computed one after the other; more parts take less memory.
    config.accumulate = 1
    # Devices that share each part of a batch; () is all of them, in all processes.
    config.mesh = ()
    # Gradients that devices exchange: float32, or dfp16 with half the bytes and batch statistics per device.
    config.gradient_dtype = "float32"
    # Evaluation keeps nothing for a backward pass, so its steps can take more images.
    config.eval_batch_size = 512
    # Pixels; None uses the images as they are, which must then have one size.
    config.image_size = config_dict.placeholder(int)
    # Augmentation: smallest share of an image to crop (with image_size), mirroring, and pixels to shift by.
    config.min_crop_area = 0.08
    config.flip = False
    config.max_shift = 0
    # 0 reads images in a thread, which is enough for small ones.
    config.workers = 0

    # The published recipe of ResNet (SGD, momentum 0.9, weight decay 1e-4, a warm-up), with a cosine instead
    # of its three steps. All precisions share it: DFP16 needs no settings of its own.
    config.learning_rate = 0.1
    config.warmup = 0.1
    # constant, cosine, polynomial or step. Points in a run are given as shares, so a shorter run follows the
    # same schedule.
    config.schedule = "cosine"
    # For step: the learning rate is multiplied by decay_factor after each of these shares of the run.
    config.boundaries = ()
    config.decay_factor = 0.1
    # For polynomial.
    config.power = 1.0
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.label_smoothing = 0.0

    # Steps from one record to the next; 0 records no statistics of layers in DFP16.
    config.statistics_every = 0

    # With a working directory: steps from one checkpoint to the next (a step takes one part of a batch). The
    # last step, and the step at which a run is stopped, always have one.
    config.checkpoint_every = 1000
    config.keep_checkpoints = 3
    # Format of the weights in WORKDIR/weights: float32 or dfp16.
    config.export_weights = "float32"

    return config.lock()
