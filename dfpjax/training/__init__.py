"""Everything a training run needs beside the transform: models, data, configuration, the loop and its report.

This package uses the public API of `dfpjax` only, and nothing in `dfpjax` depends on it.
"""

from .config import TrainConfig as TrainConfig
from .data import DatasetError as DatasetError
from .loop import EpochMetrics as EpochMetrics
from .loop import Result as Result
from .loop import train as train
from .report import Report as Report
