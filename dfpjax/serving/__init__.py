"""Inference: weights that stay in dynamic fixed point, their files, and exported programs."""

from dfpjax.numbers.format.frozen import FrozenArray as FrozenArray
from dfpjax.numbers.format.frozen import is_frozen as is_frozen
from dfpjax.serving._export import export as export
from dfpjax.serving._fold import FoldedBatchNorm as FoldedBatchNorm
from dfpjax.serving._fold import FoldReport as FoldReport
from dfpjax.serving._fold import OutputError as OutputError
from dfpjax.serving._fold import fold_batch_norm as fold_batch_norm
from dfpjax.serving._freeze import freeze as freeze
from dfpjax.serving._freeze import thaw as thaw
from dfpjax.serving._storage import from_arrays as from_arrays
from dfpjax.serving._storage import load_safetensors as load_safetensors
from dfpjax.serving._storage import save_safetensors as save_safetensors
from dfpjax.serving._storage import to_arrays as to_arrays
