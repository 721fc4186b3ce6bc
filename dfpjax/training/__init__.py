"""Everything a training run needs besides the transform: models, data, configuration, loop and report.

This package uses the public API of `dfpjax` only, and nothing in `dfpjax` depends on it.
"""

from .config import TrainConfig as TrainConfig
from .config_file import check_config_file as check_config_file
from .data import DatasetError as DatasetError
from .devices import MeshError as MeshError
from .evaluation import evaluate as evaluate
from .frozen import PatternError as PatternError
from .loop import train as train
from .metrics import EpochMetrics as EpochMetrics
from .metrics import Evaluation as Evaluation
from .metrics import Result as Result
from .processes import LostProcess as LostProcess
from .processes import ProcessError as ProcessError
from .report import Report as Report
from .stopping import Stopped as Stopped
from .stopping import StopSignals as StopSignals
from .weights import CheckpointError as CheckpointError
from .weights import load_weights as load_weights
from .weights import save_weights as save_weights
