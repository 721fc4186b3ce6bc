"""What runs on each device's shards of its operands, in programs that XLA partitions between devices."""

from dfpjax.operations.partitioning import partition as _partition  # noqa: F401 (rules that XLA is told of)
from dfpjax.operations.partitioning.layout import Axes as Axes
from dfpjax.operations.partitioning.layout import Layout as Layout
from dfpjax.operations.partitioning.layout import OfBlocks as OfBlocks
from dfpjax.operations.partitioning.per_shard import described as described
from dfpjax.operations.partitioning.per_shard import per_shard as per_shard
