"""One of the processes that `benchmarks.scaling measure` times; the first one writes what it found."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from runpy import run_path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.collectives import collectives
from dfpjax.distributed import all_reduce_mean
from dfpjax.launch import place
from dfpjax.training import TrainConfig
from dfpjax.training.data import load_dataset
from dfpjax.training.program import Program

GRADIENTS = ("float32", "dfp16")
_AXIS = "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--model")
    parser.add_argument("--images", required=True, help="of each process, such as 2,8")
    parser.add_argument("--numbers", required=True, help="of exchanged arrays, such as 1024,1048576")
    parser.add_argument("--repeat", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if (here := place()) is not None:
        jax.distributed.initialize(*here)
    found = {
        "steps": [
            row
            for gradients in (GRADIENTS if jax.process_count() > 1 else GRADIENTS[:1])
            for row in steps(arguments, gradients)
        ],
        "reductions": [
            reduction(int(numbers), gradients, arguments.repeat)
            for numbers in arguments.numbers.split(",")
            for gradients in GRADIENTS
            if jax.process_count() > 1
        ],
    }
    if jax.process_index() == 0:
        arguments.out.write_text(json.dumps(found))


def steps(arguments: argparse.Namespace, gradients: str):
    """Rows with the median of the seconds that a training step takes."""
    values = run_path(arguments.config)["get_config"]().to_dict()
    processes = jax.process_count()
    for images in map(int, arguments.images.split(",")):
        changes = {"mesh": (), "accumulate": 1, "gradient_dtype": gradients, "statistics_every": 0}
        changes |= {"batch_size": images * processes}
        if arguments.model:
            changes["model"] = arguments.model
        config = TrainConfig.from_dict(values | changes)
        dataset = load_dataset(config)
        program = Program(config, dataset)
        step = program.step
        count, sizes = collectives(step.as_text())
        rng = np.random.default_rng(jax.process_index())
        batch = program.devices.batch(
            rng.standard_normal((images, *dataset.image_shape), np.float32),
            rng.integers(0, dataset.classes, images).astype(np.int32),
        )
        state = program.devices.replicate(program.start(0))

        def run(state=state, step=step, batch=batch):
            while True:
                state, metrics = step(state, *batch)
                jax.block_until_ready((state, metrics))
                yield

        yield {
            "processes": processes,
            "gradients": gradients,
            "images": images,
            "seconds": median_seconds(partial(next, run()), arguments.repeat),
            "collectives": count,
            "bytes": sum(sizes.values()),
        }


def reduction(numbers: int, gradients: str, repeat: int) -> dict:
    """The median of the seconds that the mean of an array over the processes takes."""
    mesh = Mesh(np.array(jax.devices()), (_AXIS,), axis_types=(AxisType.Auto,))
    mean = all_reduce_mean if gradients == "dfp16" else jax.lax.pmean
    of_each = jax.jit(
        jax.shard_map(
            lambda x: mean(x[0], _AXIS),
            mesh=mesh,
            in_specs=PartitionSpec(_AXIS),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    )
    own = np.random.default_rng(jax.process_index()).standard_normal((1, numbers), np.float32)
    x = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(_AXIS)), own)
    return {
        "processes": jax.process_count(),
        "gradients": gradients,
        "numbers": numbers,
        "seconds": median_seconds(lambda: jax.block_until_ready(of_each(x)), repeat),
    }


def median_seconds(run: Callable[[], object], repeat: int) -> float:
    run(), run()  # the first calls allocate
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    # All processes wait for the slowest, so those of the first one stand for all.
    return statistics.median(times)


if __name__ == "__main__":
    main()
