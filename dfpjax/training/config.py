"""The configuration of a training run, checked when it is made."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Self

from .data import DATASET_NAMES, is_dataset
from .models import MODELS
from .precision import PRECISIONS
from .weights import WEIGHT_FORMATS

SCHEDULES = ("constant", "cosine", "polynomial", "step")
GRADIENT_DTYPES = ("float32", "dfp16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run for each seed; every field must be given.

    **Raises:** `ValueError` for a value that no run can use; the message says which values are valid.
    """

    # The arithmetic of convolutions and dot products: one of `PRECISIONS`.
    precision: str
    # One run for each seed, which determines initialisation, order of the images and augmentation.
    seed: tuple[int, ...]
    # One of `MODELS`.
    model: str
    # Patterns of parameters that are trained, such as ("^Dense_0",): regular expressions that match anywhere
    # in a path, `Block_3/Dense_0/kernel`. () trains all. The others stay as the run starts with them, rounded
    # to DFP16 where the precision reads them so. Then dropout is off and batch norm has running statistics.
    trained: tuple[str, ...]
    # One of `DATASETS`, or "tfds:NAME" for any image classification dataset of tensorflow-datasets.
    dataset: str
    # Directory of the prepared datasets; None for that of tensorflow-datasets (`$TFDS_DATA_DIR` or its
    # default). For "image_folder", the folder that contains `train` and `val`.
    data_dir: str | None
    # Training and test data, as TFDS split expressions such as "train" or "train[:256]".
    train_split: str
    test_split: str
    # Passes over the training split.
    epochs: int
    # Images for one update of the parameters.
    batch_size: int
    # Number of equal parts of a batch. Each part is a training step with its own batch statistics; the mean
    # of their gradients updates the parameters. More parts take less memory.
    accumulate: int
    # Devices that share the work of a step, each with an equal part of its images: (N,), or () for all
    # devices of all processes. Their number changes results by no more than the rounding of float32 sums.
    mesh: tuple[int, ...]
    # The numbers in which devices exchange gradients, one of `GRADIENT_DTYPES`. "dfp16" has half the bytes
    # (`dfpjax.distributed.all_reduce_mean`); then each device has batch statistics of its own images.
    gradient_dtype: str
    # Images in an evaluation step.
    eval_batch_size: int
    # Height and width of the network's input, cropped from the dataset's images and scaled; None uses the
    # images as they are.
    image_size: int | None
    # With `image_size`, augmentation crops a random part of at least this share of a training image.
    min_crop_area: float
    # Augmentation mirrors half of the training images.
    flip: bool
    # Augmentation shifts each training image by up to this many pixels along each axis.
    max_shift: int
    # Processes that read and augment images, started anew for each evaluation; 0 uses a thread of the
    # training process. The batches do not depend on this number.
    workers: int
    # The highest learning rate, reached after the warm-up.
    learning_rate: float
    # Share of all updates in which the learning rate rises linearly from zero.
    warmup: float
    # The learning rate after the warm-up, one of `SCHEDULES`: "constant"; "cosine" and "polynomial" fall to
    # zero; "step" multiplies it by `decay_factor` at each of `boundaries`.
    schedule: str
    # Only for "step": shares of all updates.
    boundaries: tuple[float, ...]
    decay_factor: float
    # Only for "polynomial": the power of the remaining share of updates.
    power: float
    # Momentum of SGD.
    momentum: float
    # Multiple of each kernel that is added to its gradient; biases and batch-norm parameters do not decay.
    weight_decay: float
    # Probability that the training loss moves from the true class to all classes equally; not the test loss.
    label_smoothing: float
    # Steps from one record of the statistics of layers in DFP16 to the next, from the first step on; 0 for
    # none.
    statistics_every: int
    # Steps from one checkpoint in the working directory to the next; 0 for none. A run also writes one at its
    # end and when it is stopped.
    checkpoint_every: int
    # Number of checkpoints kept of each seed, the newest ones.
    keep_checkpoints: int
    # Format of the weights of a finished run, one of `WEIGHT_FORMATS`: "float32", or "dfp16" for half the
    # size. Checkpoints are always float32, so that a run can be resumed exactly.
    export_weights: str

    def __post_init__(self) -> None:
        _check_types(self)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("model", self.model, MODELS)
        patterns = isinstance(self.trained, tuple) and all(map(_is_pattern, self.trained))
        _check("trained", self.trained, patterns, "a tuple of regular expressions, or () for all parameters")
        _check("dataset", self.dataset, is_dataset(self.dataset), f"one of {', '.join(DATASET_NAMES)}")
        seeds = self.seed if isinstance(self.seed, tuple) else ()
        natural = len(seeds) > 0 and all(isinstance(seed, int) and seed >= 0 for seed in seeds)
        different = natural and len(set(seeds)) == len(seeds)
        _check("seed", self.seed, different, "a tuple of one or more different integers of at least 0")
        for field in ("epochs", "batch_size", "eval_batch_size"):
            _check(field, getattr(self, field), getattr(self, field) >= 1, "at least 1")
        divides = self.accumulate >= 1 and self.batch_size % self.accumulate == 0
        _check("accumulate", self.accumulate, divides, f"a divisor of batch_size, which is {self.batch_size}")
        one = isinstance(self.mesh, tuple) and len(self.mesh) <= 1
        valid = one and all(isinstance(devices, int) and devices >= 1 for devices in self.mesh)
        _check("mesh", self.mesh, valid, "(), for all devices, or a tuple of their number")
        _check_choice("gradient_dtype", self.gradient_dtype, GRADIENT_DTYPES)
        valid_size = self.image_size is None or self.image_size >= 1
        _check("image_size", self.image_size, valid_size, "None or at least 1")
        _check("min_crop_area", self.min_crop_area, 0 < self.min_crop_area <= 1, "above 0 and at most 1")
        for field in ("max_shift", "workers"):
            _check(field, getattr(self, field), getattr(self, field) >= 0, "at least 0")
        _check("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0 and finite")
        _check("warmup", self.warmup, 0 <= self.warmup < 1, "from 0 to below 1")
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_boundaries(self)
        _check("decay_factor", self.decay_factor, 0 < self.decay_factor <= 1, "above 0 and at most 1")
        _check("power", self.power, 0 < self.power < math.inf, "above 0 and finite")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "from 0 to below 1")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0 and finite")
        for field in ("statistics_every", "checkpoint_every"):
            natural = isinstance(getattr(self, field), int) and getattr(self, field) >= 0
            _check(field, getattr(self, field), natural, "an integer of at least 0")
        measurable = self.statistics_every == 0 or self.precision != "float32"
        _check("statistics_every", self.statistics_every, measurable, "0 where the precision is float32")
        measurable = self.statistics_every == 0 or self.gradient_dtype == "float32"
        _check("statistics_every", self.statistics_every, measurable, "0 where gradient_dtype is dfp16")
        positive = isinstance(self.keep_checkpoints, int) and self.keep_checkpoints >= 1
        _check("keep_checkpoints", self.keep_checkpoints, positive, "an integer of at least 1")
        _check_choice("export_weights", self.export_weights, WEIGHT_FORMATS)
        _check("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "from 0 to below 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration with these fields; also takes an `ml_collections.ConfigDict`.

        **Raises:** `ValueError` as the class does, and for unknown or missing fields.
        """
        cls.check_fields(values)
        if missing := [field.name for field in dataclasses.fields(cls) if field.name not in values]:
            raise ValueError(f"missing field: {', '.join(missing)}")
        return cls(**dict(values))

    @classmethod
    def check_fields(cls, names: Iterable[str]) -> None:
        """**Raises:** `ValueError` if one of these is not the name of a field; the message has all names."""
        fields = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in names if name not in fields]:
            raise ValueError(f"no such field: {', '.join(unknown)}; the fields are {', '.join(fields)}")


def _check(field: str, value: Any, valid: bool, wanted: str) -> None:
    if not valid:
        raise ValueError(f"{field} is {value!r}; it must be {wanted}")


_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str | None: "a string or None",
    int | None: "an integer or None",
}


def _check_types(config: TrainConfig) -> None:
    """An integer is a number, True is neither."""
    for field in dataclasses.fields(config):
        if field.type not in _NAMES:  # tuples, of which what they hold is checked too
            continue
        value = getattr(config, field.name)
        kinds = float | int if field.type is float else field.type
        valid = isinstance(value, kinds) and (field.type is bool or not isinstance(value, bool))
        _check(field.name, value, valid, _NAMES[field.type])


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return isinstance(value, str)


def _check_boundaries(config: TrainConfig) -> None:
    """Only for the schedule that uses them, so another schedule can be tried without removing them."""
    if config.schedule != "step":
        return
    boundaries = config.boundaries if isinstance(config.boundaries, tuple) else ()
    shares = (config.warmup, *boundaries, 1)
    ascending = all(isinstance(share, float | int) for share in shares) and all(
        earlier < later for earlier, later in itertools.pairwise(shares)
    )
    wanted = "a tuple of one or more ascending shares of all updates, above warmup and below 1"
    _check("boundaries", config.boundaries, len(boundaries) > 0 and ascending, wanted)


def _check_choice(field: str, value: str, choices: Any) -> None:
    _check(field, value, value in choices, f"one of {', '.join(choices)}")
