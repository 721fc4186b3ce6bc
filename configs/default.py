"""Defaults of a training run; `dfpjax.training.TrainConfig` says which values each field takes."""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """A configuration with every field; other files change some of them."""
    config = config_dict.ConfigDict()

    # float32, bfloat16 (the model's arithmetic; parameters stay float32), dfp16 (dfpjax's default policy),
    # dfp16_paper (first convolution and classifier stay float32), dfp16_stochastic (rounds at random), or
    # dfp16_forced and dfp16_forced_stochastic (nothing stays float32, however small).
    config.precision = "float32"
    # A tuple: one run for each seed, so that `--config.seed=0,1,2` makes three.
    config.seed = (0,)

    config.model = "digits_resnet"
    config.dataset = "digits"
    # None: where tensorflow-datasets keeps its data, $TFDS_DATA_DIR or ~/tensorflow_datasets. The dataset
    # image_folder needs a folder.
    config.data_dir = config_dict.placeholder(str)
    # TFDS split expressions; "train[:256]" makes a quick trial.
    config.train_split = "train"
    config.test_split = "test"

    config.epochs = 90
    config.batch_size = 64
    # Parts a batch is computed in, one after the other; more take less memory.
    config.accumulate = 1
    # Nothing is kept for a backward pass, so an evaluation step can take more images.
    config.eval_batch_size = 512
    # Pixels; None takes the images of the dataset whole, and needs them to be of one size.
    config.image_size = config_dict.placeholder(int)
    # Augmentation: the smallest part to be cut out (with image_size), mirroring, and pixels to move by.
    config.min_crop_area = 0.08
    config.flip = False
    config.max_shift = 0
    # 0: a thread reads the images, which is enough for small ones.
    config.workers = 0

    # The published recipe of ResNet (SGD, momentum 0.9, weight decay 1e-4, a warm-up), with a
    # cosine in place of its three steps. It is the same in every precision: DFP16 needs no setting of its
    # own.
    config.learning_rate = 0.1
    config.warmup = 0.1
    # constant, cosine, polynomial or step. Parts of a run are shares and not epochs, so that a shorter run
    # has the same course.
    config.schedule = "cosine"
    # For step: the learning rate is multiplied by decay_factor after each of these shares of the run.
    config.boundaries = ()
    config.decay_factor = 0.1
    # For polynomial.
    config.power = 1.0
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.label_smoothing = 0.0

    # Steps; 0 records no statistics of the numbers in DFP16.
    config.statistics_every = 0

    # Where there is a working directory: steps from one checkpoint to the next (a step takes one part of a
    # batch). The last step has one in any case, and so does the step at which a run is stopped.
    config.checkpoint_every = 1000
    config.keep_checkpoints = 3
    # float32 or dfp16, of the weights in WORKDIR/weights.
    config.export_weights = "float32"

    return config.lock()
