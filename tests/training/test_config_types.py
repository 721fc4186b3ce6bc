"""Every field of a training configuration refuses a value of the wrong type."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from dfpjax.training import TrainConfig

DEFAULT = Path(__file__).parents[2] / "configs" / "default.py"
CONFIG = TrainConfig.from_dict(runpy.run_path(str(DEFAULT))["get_config"]())
ALLOWED = {"data_dir": (None, "a"), "image_size": (None,), "train_split": ("a",), "test_split": ("a",)}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainConfig)])
def test_the_message_names_the_field(field):
    is_switch = isinstance(getattr(CONFIG, field), bool)
    for value in (None, "a", 3.5j, object(), ["a"], {"a": 1}, *([] if is_switch else [True])):
        if value in ALLOWED.get(field, ()) or (field == "boundaries" and CONFIG.schedule != "step"):
            continue
        with pytest.raises(ValueError, match=f"^{field} is .*; it must be"):
            dataclasses.replace(CONFIG, **{field: value})
