"""Datasets and batches. `DATASETS` maps the names a configuration may use to tensorflow-datasets builders."""

from .digits import Digits as Digits
from .digits import prepared_digits as prepared_digits
from .pipeline import Split as Split
from .pipeline import eval_batches as eval_batches
from .pipeline import load_split as load_split
from .pipeline import train_batches as train_batches

# Each is a function of the data directory (or None) that returns a prepared builder.
DATASETS = {"digits": prepared_digits}
