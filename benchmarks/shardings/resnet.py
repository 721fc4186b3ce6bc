"""The training step of ResNet-50, compiled for one device and, data-parallel, for two."""

from runpy import run_path

from benchmarks.collectives import collectives
from benchmarks.shardings.checks import Compiled, native_calls
from dfpjax.training import TrainConfig
from dfpjax.training.data import load_dataset
from dfpjax.training.program import Program


def compiled_resnet(images: int = 32) -> Compiled:
    """What is known of the step with so many images, which are synthetic."""
    values = run_path("configs/fake_imagenet.py")["get_config"]().to_dict()
    values |= {"accumulate": 1, "batch_size": images}

    def program(devices: int, precision: str) -> str:
        config = TrainConfig.from_dict(values | {"mesh": (devices,), "precision": precision})
        return Program(config, load_dataset(config)).step.as_text()

    shared = program(2, "dfp16")
    return Compiled(
        native=native_calls(shared),
        native_alone=native_calls(program(1, "dfp16")),
        collectives=collectives(shared)[1],
        collectives_float32=collectives(program(2, "float32"))[1],
    )
