"""All private JAX symbols that dfpjax uses.

JAX makes no compatibility promise for these names. When a new JAX release moves one of them, only this file
changes. `nox -s lowest newest` runs the tests with the oldest and the newest release that pyproject.toml
allows; the last run was with 0.10.0 and 0.12.0.1.
"""

import functools
import re
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import ad_checkpoint as _ad_checkpoint
from jax._src import config as _config
from jax._src import core as _core
from jax._src import custom_partitioning_sharding_rule as _sharding_rule
from jax._src import dispatch as _dispatch
from jax._src import dtypes as _dtypes
from jax._src import linear_util as _linear_util
from jax._src import mesh as _mesh
from jax._src import shard_map as _shard_map
from jax._src import sharding_impls as _sharding_impls
from jax._src import source_info_util as _source_info
from jax._src import tree_util as _tree_util
from jax._src import xla_bridge as _xla_bridge
from jax._src.export import shape_poly as _shape_poly
from jax._src.interpreters import mlir as _mlir
from jax._src.interpreters import partial_eval as _partial_eval
from jax._src.interpreters import pxla as _pxla
from jax._src.lib import xla_client as _xla_client
from jax.experimental import jet as _jet
from jax.experimental.sparse import transform as _sparse_transform
from jax.sharding import PartitionSpec

try:
    from jax._src import flattree as _flattree
except ImportError:  # before 0.11
    _flattree = None

# --- extended dtype -------------------------------------------------------------------------------

ExtendedDType = _dtypes.ExtendedDType
extended = _dtypes.extended
ShapedArray = _core.ShapedArray
physical_aval = _core.physical_aval
physical_sharding = _sharding_impls.physical_sharding
logical_sharding = _sharding_impls.logical_sharding
pytype_aval_mappings = _core.pytype_aval_mappings
shard_args = _pxla.shard_args
shard_arg_handlers = _pxla.shard_arg_handlers
global_result_handlers = _pxla.global_result_handlers
get_constant_handler = _mlir.get_constant_handler
register_constant_handler = _mlir.register_constant_handler
dispatch_registry = _tree_util.dispatch_registry


def accept_as_value(kind: type) -> None:
    """Make JAX accept values of this class without conversion."""
    if hasattr(_dtypes, "register_canonicalize_value_handler"):  # not in JAX 0.10.0
        _dtypes.register_canonicalize_value_handler(kind, None)
    else:
        _dtypes.canonicalize_value_handlers[kind] = lambda x: x


# --- primitives -----------------------------------------------------------------------------------

apply_primitive = _dispatch.apply_primitive
# Makes operands inside shard_map vary over the same mesh axes. JAX 0.10.0 has another name for it.
vary_together = getattr(_core, "auto_insert_reshard", None) or _core.standard_insert_pvary


def result_aval(operand, shape, dtype, sharding=None):
    """The type of a result of this shape and dtype, which varies over the same manual mesh axes as its
    operand. Without a sharding, it is not sharded over explicit axes."""
    if sharding is None:
        sharding = operand.sharding.update(spec=PartitionSpec(*(None,) * len(shape)))
    return operand.update(shape=tuple(shape), dtype=dtype, sharding=sharding, weak_type=False)


jet, jet_rules, zero_series = _jet.jet, _jet.jet_rules, _jet.zero_series
name_p = _ad_checkpoint.name_p  # the primitive of `checkpoint_name`
sparse_rules = _sparse_transform.sparse_rules_bcoo


def partitions(sharding) -> tuple:
    """For each axis of an array, the mesh axis or axes that split it, or None."""
    # From JAX 0.10.2 on, a spec with a reduced axis cannot be iterated over.
    return tuple(getattr(sharding.spec, "partitions", sharding.spec))


def is_unreduced(aval) -> bool:
    """Whether the devices hold partial sums, still to be added over explicit or manual axes."""
    return bool(aval.sharding.spec.unreduced or aval.mat.unreduced)


def varying_axes(x) -> frozenset:
    """The manual mesh axes over which an array varies; none where shard_map does not check it."""
    return frozenset(jax.typeof(x).mat.varying)


# --- symbolic extents -----------------------------------------------------------------------------


def evaluated_dimension(size, wanted: int) -> int:
    """A symbolic extent (`jax.export.symbolic_shape`) where each of its variables is the number nearest to
    `wanted` that its constraints allow."""

    def value(variable: str) -> int:
        symbol = _shape_poly._DimExpr._from_var(variable, size.scope)
        low, high = _shape_poly._bounds_decision(symbol, _shape_poly.BoundsPrecision.BEST)
        return int(min(max(wanted, low), high))

    # JAX evaluates products to np.int32, in which counts of multiply-adds would overflow.
    return max(0, int(size._evaluate({name: value(name) for name in size._get_vars()})))


# --- partitioning ---------------------------------------------------------------------------------


def devices_of_partitions(ctx) -> int:
    """Between how many devices XLA will partition the module that is being lowered; 0 if it will not, as on
    one device and inside a `shard_map`."""
    axes = ctx.module_context.axis_context
    if isinstance(axes, _sharding_impls.ShardingContext) and axes.num_devices > 1:
        return axes.num_devices
    return 0


def is_partitioned(ctx) -> bool:
    """Whether XLA will partition the module that is being lowered between all devices."""
    return devices_of_partitions(ctx) > 0


def is_partly_manual(ctx) -> bool:
    """Whether it is inside a `shard_map` over some axes of a mesh, where XLA partitions between the devices
    of other axes. What it gets from a partitioner there cannot communicate."""
    axes = ctx.module_context.axis_context
    if not isinstance(axes, _sharding_impls.SPMDAxisContext):
        return False
    automatic = frozenset(axes.mesh.axis_names) - axes.manual_axes
    return any(axes.mesh.shape[name] > 1 for name in automatic)


def platform_of(ctx) -> str:
    """The platform that a rule lowers for."""
    return (ctx.platforms or ctx.module_context.platforms)[0]


def partitioned_call(ctx, target: str, text: str, rule, operands) -> list:
    """Lower to a custom call that a partitioner registered for `target` replaces.

    Arguments:
        text: what the partitioner gets.
        rule: the `SdyShardingRule` by which shardings are propagated.
    """
    context = () if jax.__version_info__ < (0, 10, 1) else (ctx.module_context,)
    types = [_mlir.aval_to_ir_type(*context, aval) for aval in ctx.avals_out]
    call = _mlir.custom_call(target, result_types=types, operands=operands, backend_config=text)
    of_operands = [x.type for x in operands]
    call.attributes["sdy.sharding_rule"] = _sharding_rule.sdy_sharding_rule_to_mlir(rule, of_operands, types)
    return call.results


def register_partitioner(target: str, partition, infer) -> None:
    """Have XLA partition the custom calls to `target`.

    Arguments:
        partition: called with the operands and the results, `Placed`s, and the call's text. Returns a program
            from `shard_program`, and the `NamedSharding`s that operands and results are to have.
        infer: called likewise, with results that have no sharding. Returns the results' `NamedSharding`s.
    """

    def shapes_of(result):
        return result.tuple_shapes() if result.is_tuple() else [result]

    def packed(result, shardings):
        shardings = [
            s._to_xla_hlo_sharding(len(x.dimensions()))
            for s, x in zip(shardings, shapes_of(result), strict=True)
        ]
        return (
            _xla_client.HloSharding.tuple_sharding(result, shardings) if result.is_tuple() else shardings[0]
        )

    def on_partition(operands, operand_shardings, result, result_sharding, text):
        results = result_sharding.tuple_elements() if result.is_tuple() else [result_sharding]
        program, of_operands, of_results = partition(
            [*map(_placed, operands, operand_shardings)], [*map(_placed, shapes_of(result), results)], text
        )
        ranks = (len(x.dimensions()) for x in operands)
        of_operands = [s._to_xla_hlo_sharding(rank) for s, rank in zip(of_operands, ranks, strict=True)]
        return program, of_operands, packed(result, of_results)

    def on_infer(operands, operand_shardings, result, text):
        results = [_placed(x, None) for x in shapes_of(result)]
        return packed(result, infer([*map(_placed, operands, operand_shardings)], results, text))

    callbacks = {
        "prop_user_sharding": lambda sharding, shape, text: sharding,
        "partition": on_partition,
        "infer_sharding_from_operands": on_infer,
        "can_side_effecting_have_replicated_sharding": True,
    }
    _xla_client.register_custom_call_partitioner(target, **callbacks)
    # Plugins of other platforms, which are loaded later, have partitioners of their own.
    _xla_bridge.register_plugin_callbacks(
        functools.partial(_xla_client.register_custom_call_partitioner, name=target, **callbacks)
    )


class Placed(NamedTuple):
    """The type of a whole tensor, and its sharding in XLA's form."""

    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: Any


def _placed(shape, sharding) -> Placed:
    return Placed(tuple(shape.dimensions()), shape.numpy_dtype(), sharding)


def shard_program(fun, operands, results, mesh, platform: str) -> bytes:
    """What each device of a mesh, all of whose axes are manual, runs.

    Arguments:
        operands, results: types of those of `fun`.
        mesh: an abstract mesh.
    """
    axes = dict(mesh.shape)
    with _core.extend_axis_env_nd(axes.items()):
        jaxpr = jax.make_jaxpr(fun)(*operands)
        found = [(x.shape, x.dtype) for x in jaxpr.out_avals]
        assert found == [(x.shape, x.dtype) for x in results], (found, results)
        module = _mlir.build_mlir_module_helper(
            jaxpr,
            name="shard",
            platforms=(platform,),
            backend=None,
            axis_context=_sharding_impls.SPMDAxisContext(mesh, frozenset(axes)),
        )
    return _mlir.module_to_bytecode(module)


def composite_of(value, shape) -> tuple[str, list, list] | None:
    """dfpjax's composite (`jax.lax.composite`), or function called in place of one, that computes a value of
    the module that is being lowered.

    Arguments:
        shape: the value's. Extents of operands that the module does not know are as these.

    Returns:
        its name, its operands and their types, or None if the value comes from elsewhere. The lowering rule
        of the primitive that the value is an operand of must be registered with `cacheable=False`: others
        are lowered apart from what makes their operands.
    """
    operation = _operation_of(value, "stablehlo.composite") or _operation_of(value, "func.call")
    if operation is None:
        return None
    is_call = operation.name == "func.call"
    name, operands = operation.attributes["callee" if is_call else "name"].value, list(operation.operands)
    if not name.startswith("dfpjax."):
        return None
    if is_call:  # a module numbers functions of one name, and variables of extents go first
        name = re.sub(r"_\d+$", "", name)
        operands = [operand for operand in operands if operand.type.rank]

    def aval(of) -> ShapedArray:
        extents = (shape[axis] if of.is_dynamic_dim(axis) else of.shape[axis] for axis in range(of.rank))
        return ShapedArray(tuple(extents), _DTYPES[str(of.element_type)])

    return name, operands, [aval(operand.type) for operand in operands]


_DTYPES = {
    "f32": np.dtype("float32"),
    "i1": np.dtype("bool"),
    "i16": np.dtype("int16"),
    "i32": np.dtype("int32"),
}


def custom_call_of(value) -> tuple[str, dict | str, list] | None:
    """The custom call that computes a value, likewise.

    Returns:
        its target; of a foreign function (`jax.ffi`) the attributes as integers, strings and lists of
        integers, of other calls the text; and the call's results. None if it is no such call.
    """
    operation = _operation_of(value, "stablehlo.custom_call")
    if operation is None:
        return None
    target, results = operation.attributes["call_target_name"].value, list(operation.results)
    if "mhlo.backend_config" not in operation.attributes:
        return target, getattr(operation.attributes.get("backend_config"), "value", ""), results
    config = operation.attributes["mhlo.backend_config"]
    attributes = {}
    for entry in config if hasattr(config, "__getitem__") else ():
        found = getattr(entry.attr, "value", entry.attr)
        attributes[entry.name] = found if isinstance(found, int | str) else [int(v) for v in found]
    return target, attributes, results


def _operation_of(value, name: str):
    operation = getattr(getattr(unconstrained(value), "owner", None), "operation", None)
    return operation if operation is not None and operation.name == name else None


def unconstrained(value):
    """A value of the module that is being lowered, without the constraints on its sharding that types on
    explicit meshes make."""
    operation = getattr(getattr(value, "owner", None), "operation", None)
    while operation is not None and operation.name == "sdy.sharding_constraint":
        value = operation.operands[0]
        operation = getattr(getattr(value, "owner", None), "operation", None)
    return value


def tile_assignment(tiling, rank: int, devices: int) -> np.ndarray:
    """The number of the device that holds each tile of an array, from XLA's sharding: int array of shape
    (tiles along axis 0, tiles along axis 1, …, replicas)."""
    if not tiling.is_tiled():
        return np.arange(devices).reshape((1,) * rank + (-1,))
    tiles = tiling.tile_assignment_dimensions()[:rank]
    return np.array(tiling.tile_assignment_devices()).reshape((*tiles, -1))


# --- transform ------------------------------------------------------------------------------------

eval_jaxpr = _core.eval_jaxpr
UNSPECIFIED = _sharding_impls.UNSPECIFIED  # the sharding of a jit's result for which none was given
without_named_axes = _core.filter_named_axis_effects
trace_context = _config.trace_context  # hashable: the settings and environment that tracing depends on


def name_entries(name_stack) -> list[tuple[str, str]]:
    """The entries of a name stack: ("scope", name) for a named scope, or such as ("transform", "jvp")."""
    kinds = {_source_info.Scope: "scope", _source_info.Transform: "transform"}
    return [(kinds[type(entry)], entry.name) for entry in name_stack.stack]


def user_frames(traceback) -> list[tuple[str, int]]:
    """(file, line) of each frame outside JAX, innermost first."""
    return [(frame.file_name, frame.start_line) for frame in _source_info.user_frames(traceback)]


def nameless_debug_info(name: str):
    """Debugging information of a jaxpr whose inputs and outputs have no names."""
    return _linear_util.DebugInfo("dfpjax", name, None, None)


def trace(fun, avals, name: str):
    """Trace `fun`, a function of arrays, to (jaxpr, consts). The jaxpr's outputs are the leaves of the result
    of `fun`."""
    debug_info = nameless_debug_info(name)
    wrapped = _linear_util.wrap_init(lambda *args: _tree_util.tree_leaves(fun(*args)), debug_info=debug_info)
    jaxpr, _, consts = _partial_eval.trace_to_jaxpr_dynamic(wrapped, list(avals))
    return jaxpr, consts


def newly_manual_axes(params: dict) -> frozenset:
    """Mesh axes that a shard_map with these parameters makes manual."""
    return params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]  # before 0.10.2


def scan_constants(params: dict) -> int:
    """Number of a scan's constants: the first operands, which are the same in every iteration."""
    if "num_consts" in params:  # before 0.11
        return params["num_consts"]
    constants, _, _ = params["ft_in"].unpack()
    return len(constants)


def scan_carry(params: dict) -> int:
    """Number of the values that a scan's iterations hand on: the operands after the constants."""
    if "num_carry" in params:  # before 0.11
        return params["num_carry"]
    _, carry, _ = params["ft_in"].unpack()
    return len(carry)


def scan_with_results(params: dict, count: int) -> dict:
    """The parameters of a scan that change if its body returns `count` more results, which are stacked."""
    if "ft_out" not in params:  # before 0.11, whose parameters count only the carry
        return {}
    carry, stacked = params["ft_out"].unpack()
    return {"ft_out": _flattree.pack((carry, (stacked, _flattree.nones(count))))}


@contextmanager
def inside_shard_map(mesh, newly_manual_axes, check_vma):
    """The environment in which JAX traces the body of a shard_map (set up as in `_shard_map_staging`)."""
    with ExitStack() as stack:
        stack.enter_context(_shard_map._extend_axis_env(mesh, newly_manual_axes))
        stack.enter_context(_mesh.use_abstract_mesh(_shard_map._as_manual_mesh(mesh, newly_manual_axes)))
        stack.enter_context(_config._check_vma(check_vma))
        yield
