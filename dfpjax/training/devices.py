"""The devices that share the work of a step: data parallelism over all of them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .config import TrainConfig
from .data import Batch, Rows

AXIS = "data"
"""The axis of the mesh. Every device has all parameters, and an equal share of a batch's images."""


class MeshError(ValueError):
    """The devices cannot share the work as the configuration asks; the message says what to change."""


class Devices:
    """The mesh that a configuration asks for.

    **Raises:** `MeshError` if there are too few devices, the mesh leaves out a process, or a step's images
    cannot be divided among the devices.
    """

    def __init__(self, config: TrainConfig) -> None:
        devices = jax.devices()
        (self.count,) = config.mesh or (len(devices),)
        if self.count > len(devices):
            raise MeshError(
                f"mesh is ({self.count},); it must be at most ({len(devices)},), all devices there are"
            )
        if jax.process_count() > 1 and self.count != len(devices):
            raise MeshError(
                f"mesh is ({self.count},); it must be () or ({len(devices)},), all devices, in a run of"
                f" {jax.process_count()} processes"
            )
        images = config.batch_size // config.accumulate
        if images % self.count:
            raise MeshError(
                f"a step takes {images} images (batch_size is {config.batch_size}, accumulate is"
                f" {config.accumulate}), which {self.count} devices do not divide; change batch_size, or give"
                " mesh as many devices as divide it"
            )
        self.mesh = Mesh(np.array(devices[: self.count]), (AXIS,), axis_types=(AxisType.Auto,))
        # Those of this process. JAX's order of devices is by process.
        own = [i for i, device in enumerate(self.mesh.devices) if device.process_index == jax.process_index()]
        self._own = range(own[0], own[-1] + 1)

    @property
    def replicated(self) -> NamedSharding:
        """How each device has all of an array."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def split(self) -> NamedSharding:
        """How devices share a batch."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def rows(self, batch_size: int, parts: int = 1) -> Rows:
        """The rows of a batch of so many parts that this process reads."""
        return Rows.share(batch_size, parts=parts, devices=self.count, own=self._own)

    def rounded(self, batch_size: int) -> int:
        """A batch that the devices divide, of so many images or a few more."""
        return -(-batch_size // self.count) * self.count

    def replicate(self, tree: Any) -> Any:
        """A tree of arrays, the same in all processes, on every device."""
        if self.count == 1:
            return tree

        def on_all(x: jax.Array) -> jax.Array:
            x = np.array(x)  # a copy, which the steps may overwrite
            return jax.make_array_from_callback(x.shape, self.replicated, lambda index: x[index])

        return jax.tree.map(on_all, tree)

    def batch(self, images: np.ndarray, labels: np.ndarray) -> Batch:
        """A batch, of which each process gives its rows."""
        if self.count == 1:
            return images, labels
        return tuple(jax.make_array_from_process_local_data(self.split, x) for x in (images, labels))
