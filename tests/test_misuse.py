"""Every public function and method, called with wrong types, raises an error of dfpjax that names the
argument and the function, before it compiles anything."""

import dataclasses
import inspect
import pathlib
import traceback
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfpjax
import dfpjax.numpy as dnp
from dfpjax import DFP32Array, DFPArray, OpConfig, PerRole, Policy, Rule, checkpoint_policies, launch
from dfpjax.insight._report import Report
from dfpjax.insight._sensitivity_report import LayerSensitivity, SensitivityReport
from dfpjax.operations import conv_general_dilated, dot_general, saturated_chains
from dfpjax.policy._rules import Position

X = jnp.ones((2, 3))
Q = DFPArray(np.ones((2, 3), np.int16), 0)
SLICES = DFPArray(np.ones((2, 3), np.int16), np.zeros((2, 1), np.int32))
ACCUMULATOR = DFP32Array(np.ones((2, 3), np.int32), 0)
BLOCKS = dfpjax.Blocks()
LAYER = LayerSensitivity(
    layer="a", pattern="a", config=OpConfig(), bits=(16,), gradient_errors=(0.1,), loss_errors=(0.1,)
)
SENSITIVITY = SensitivityReport(layers=(LAYER,), base=Policy())
HISTORY = dfpjax.History()
REPORT = Report(ops=(), opaque=(), unmatched=())

NONSENSE = {
    "None": None,
    "string": "nonsense",
    "float": 3.5,
    "object": object(),
    "list": ["a"],
    "ragged": [[1.0], [1.0, 2.0]],
    "dict": {"a": 1},
    "complex": np.ones(3, np.complex64),
    "integers": np.arange(7),
    "bools": np.ones((2, 3), bool),
    "text array": np.array(["a", "b"]),
}


def f(x):
    return x


@dataclasses.dataclass(frozen=True)
class Case:
    """A valid call, and the arguments that a test replaces one after the other."""

    function: Callable
    arguments: dict
    wrong: dict[str, str]
    """For each argument the names, in `NONSENSE`, of values that are valid for it."""
    name: str = ""
    positional: tuple = ()

    def __str__(self) -> str:
        return self.name or self.function.__name__


ROUNDING = {"rounding": "", "seed": "None"}
STOCHASTIC = {"rounding": "stochastic", "seed": 1}


def tensor_function(function, wrong, **arguments):
    return Case(function, {"x": Q, **arguments}, {"x": "", **wrong})


def binary(function, **more):
    return Case(function, {"a": Q, "b": Q, **more}, {"a": "", "b": "", **dict.fromkeys(more, "")})


def rounded(case):
    """The case with the arguments of rounding added. Rounding is stochastic, so None is not a valid seed."""
    wrong = {**case.wrong, "rounding": "", "seed": ""}
    return dataclasses.replace(case, arguments={**case.arguments, **STOCHASTIC}, wrong=wrong)


WINDOW = DFPArray(np.ones((1, 4, 4, 2), np.int16), 0)
DOT = {"dimension_numbers": (((1,), (0,)), ((), ()))}
CONV = {"window_strides": (1, 1), "padding": [(0, 0), (0, 0)]}
IMAGE, KERNEL = jnp.ones((1, 2, 4, 4)), jnp.ones((3, 2, 2, 2))

CASES = [
    rounded(Case(dfpjax.quantize, {"x": X, "bits": 16, "axis": 0}, {"x": "", "bits": "", "axis": "None"})),
    Case(dfpjax.quantize, {"x": X, "blocks": BLOCKS}, {"blocks": "None"}),
    Case(dfpjax.Blocks, {"rows": 4, "columns": 32}, {"rows": "None", "columns": ""}),
    Case(dfpjax.dequantize, {"x": Q}, {"x": ""}),
    Case(DFPArray, {"mantissa": np.ones(3, np.int16), "exponent": 0}, {"mantissa": "", "exponent": ""}),
    Case(DFPArray, {"mantissa": np.ones(3, np.int16), "exponent": [[[0]]], "blocks": BLOCKS},
         {"mantissa": "", "exponent": "", "blocks": "None"}),
    Case(DFP32Array, {"mantissa": np.ones(3, np.int32), "exponent": 0}, {"mantissa": "", "exponent": ""}),
    *map(rounded, (binary(dnp.add), binary(dnp.subtract), binary(dnp.maximum), binary(dnp.fma, c=Q))),
    rounded(Case(dnp.matmul, {"a": Q, "b": Q.T}, {"a": "", "b": ""})),
    binary(dnp.multiply),
    rounded(tensor_function(dnp.down_convert, {"bits": ""}, bits=8)),
    *(tensor_function(function, {}) for function in (dnp.negative, dnp.absolute, dnp.relu, dnp.ravel)),
    tensor_function(dnp.reshape, {"shape": ""}, shape=(3, 2)),
    tensor_function(dnp.transpose, {"axes": "None"}, axes=(1, 0)),
    tensor_function(dnp.swapaxes, {"axis1": "", "axis2": ""}, axis1=0, axis2=1),
    tensor_function(dnp.moveaxis, {"source": "", "destination": ""}, source=0, destination=1),
    tensor_function(dnp.expand_dims, {"axis": "integers"}, axis=0),
    Case(dnp.squeeze, {"x": Q[:1], "axis": 0}, {"x": "", "axis": "None"}),
    tensor_function(dnp.split_exponent, {"axis": ""}, axis=0),
    tensor_function(dnp.flip, {"axis": "None"}, axis=0),
    tensor_function(dnp.broadcast_to, {"shape": ""}, shape=(4, 2, 3)),
    tensor_function(dnp.take, {"indices": "integers", "axis": ""}, indices=0, axis=0),
    tensor_function(dnp.pad, {"pad_width": ""}, pad_width=1),
    *(
        rounded(Case(join, {"arrays": [Q, Q], "axis": 0}, {"arrays": "", "axis": ""}))
        for join in (dnp.concatenate, dnp.stack)
    ),
    Case(
        dnp.max_pool,
        {"x": WINDOW, "window_shape": (2, 2), "strides": (1, 1), "padding": "VALID"},
        {"x": "", "window_shape": "", "strides": "None", "padding": ""},
    ),
    *(
        Case(x.__getitem__, {}, {"key": "None integers" + " bools" * (x is Q)}, name="index")
        for x in (Q, SLICES)
    ),
    Case(dfpjax.mixed_precision, {"fun": f, "policy": None, "backend": "auto"},
         {"fun": "None", "policy": "None", "backend": ""}),
    Case(dfpjax.freeze, {"variables": {}, "policy": None, "fun": None}, {"policy": "None", "fun": "None"}),
    Case(dfpjax.fold_batch_norm, {"fun": f, "policy": None}, {"fun": "", "policy": "None"}, positional=(X,)),
    Case(dfpjax.thaw, {"variables": {}}, {}),
    Case(dfpjax.export, {"fun": f}, {"fun": ""}, positional=(X,)),
    Case(dfpjax.explain, {"fun": f, "policy": None}, {"fun": "", "policy": "None"}, positional=(X,)),
    Case(dfpjax.with_statistics, {"fun": f, "policy": None, "shadow": False},
         {"fun": "", "policy": "None", "shadow": ""}),
    Case(dfpjax.sensitivity, {"loss_fn": f, "policy": None, "bits": (16,), "layers": None},
         {"loss_fn": "", "policy": "None", "bits": "integers", "layers": "None string"}, positional=(X,)),
    Case(dfpjax.plot_mantissas, {"q": Q, "path": None, "bits": 16},
         {"q": "", "path": "None string", "bits": ""}),
    Case(REPORT.plot, {"path": None}, {"path": "None string"}, name="Report.plot"),
    Case(SENSITIVITY.plot, {"path": None}, {"path": "None string"}, name="SensitivityReport.plot"),
    Case(HISTORY.plot, {"path": None}, {"path": "None string"}, name="History.plot"),
    Case(SENSITIVITY.policy, {"budget": 0.1}, {"budget": "float"}, name="SensitivityReport.policy"),
    Case(LAYER.rule, {"bits": 16}, {"bits": "None"}, name="OpConfig"),
    Case(dfpjax.History, {"records": ()}, {"records": ""}),
    Case(HISTORY.add, {"step": 0, "statistics": {}}, {"step": "float", "statistics": ""}, name="History.add"),
    Case(dfpjax.FixedChain, {"length": 256, "pre_shift": 2, "saturate": True},
         {"length": "", "pre_shift": "", "saturate": ""}),
    Case(PerRole, {"lhs": 8, "rhs": 8, "cotangent": 8}, dict.fromkeys(("lhs", "rhs", "cotangent"), "")),
    Case(OpConfig, {}, {field.name: "" for field in dataclasses.fields(OpConfig)}),
    Case(Policy, {}, {"rules": "", "default": "None", "strict": "", "fuse": ""}),
    Case(Rule, {"pattern": "a", "config": None}, {"pattern": "string", "config": "None"}),
    Case(Position, {"primitive": "dot_general", "index": 0}, {"primitive": "", "index": ""}),
    Case(checkpoint_policies.adapt, {"policy": jax.checkpoint_policies.dots_saveable}, {"policy": ""}),
    Case(checkpoint_policies.offload_dot_with_no_batch_dims, {"offload_src": "device", "offload_dst": "host"},
         {"offload_src": "string", "offload_dst": "string"}),
    Case(dot_general, {"lhs": X, "rhs": X.T, **DOT},
         {"lhs": "", "rhs": "", "dimension_numbers": "",
          "quantizers": "", "accumulation": "", "backend": ""}),
    Case(conv_general_dilated, {"lhs": IMAGE, "rhs": KERNEL, **CONV},
         {"lhs": "", "rhs": "", "window_strides": "", "padding": "", "lhs_dilation": "None",
          "rhs_dilation": "None", "feature_group_count": "", "batch_group_count": "",
          "dimension_numbers": "None", "quantizers": "", "accumulation": "", "backend": ""}),
    Case(saturated_chains, {"operation": dot_general, "lhs": X, "rhs": X.T, **DOT},
         {"operation": "", "cotangent": "None"}),
    Case(launch.settings, {"environment": {}}, {"environment": "dict"}),
]  # fmt: skip

PACKAGE = str(pathlib.Path(dfpjax.__file__).parent)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_error_of_our_own_names_the_argument(case):
    for argument, right in case.wrong.items():
        for name, value in NONSENSE.items():
            if name not in right.split(" "):
                check_error(case, argument, value)


def check_error(case, argument, value):
    arguments = {**case.arguments, argument: value}
    call = (arguments.pop("key"),) if "key" in arguments else ()
    if case.positional:  # fun, *args
        call = (arguments.pop(next(iter(arguments))), *case.positional)
    said = f"{case} with {argument}={value!r}"
    try:
        case.function(*call, **arguments)
    except (TypeError, ValueError, IndexError) as error:
        assert str(error).startswith(str(case)) and argument in str(error), f"{said}: {error}"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        assert frame.filename.startswith(PACKAGE), f"{said}: {frame}"
    else:
        pytest.fail(f"{said} is taken")


def test_all_public_functions_are_called():
    called = {case.function for case in CASES}
    for module in (dfpjax, dnp):
        for name, value in vars(module).items():
            if name.startswith("_") or not callable(value) or not value.__module__.startswith("dfpjax"):
                continue
            is_result = value in (
                dfpjax.FrozenArray,
                dfpjax.LayerStatistics,
                dfpjax.OperandStatistics,
                dfpjax.PerPass,
                dfpjax.RuntimeInfo,
            )
            is_dtype = isinstance(value, type(dfpjax.dfp16))
            assert is_result or is_dtype or value in called or not inspect.signature(value).parameters, name
