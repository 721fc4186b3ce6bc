"""Kernels: the native contraction of `cpp_ops`, called through XLA's foreign function interface."""

from dfpjax.kernels.export import export_checks as export_checks
from dfpjax.kernels.native import RuntimeInfo as RuntimeInfo
from dfpjax.kernels.native import contract as contract
from dfpjax.kernels.native import contract_chain_lengths as contract_chain_lengths
from dfpjax.kernels.native import contract_fixed_chain as contract_fixed_chain
from dfpjax.kernels.native import runtime_info as runtime_info
