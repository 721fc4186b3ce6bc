"""Runs that train a part of a network."""

import dataclasses
import io
import itertools

import jax
import numpy as np
import pytest
from flax import traverse_util
from rich.console import Console
from tiny import MODEL

import dfpjax
from dfpjax.training import PatternError, Report, Stopped, load_weights, train
from dfpjax.training.data import load_dataset
from dfpjax.training.frozen import merged, split
from dfpjax.training.program import Program

PARAMS = {"Conv_0": {"kernel": 1}, "Block_0": {"Dense_0": {"kernel": 2, "bias": 3}}, "Dense_0": {"kernel": 4}}


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        ((), ["Block_0/Dense_0/bias", "Block_0/Dense_0/kernel", "Conv_0/kernel", "Dense_0/kernel"]),
        (("^Dense_0",), ["Dense_0/kernel"]),
        (("Dense_0/kernel",), ["Block_0/Dense_0/kernel", "Dense_0/kernel"]),
        (("^Dense", "bias"), ["Block_0/Dense_0/bias", "Dense_0/kernel"]),
    ],
)
def test_patterns_choose_parameters(patterns, trained):
    chosen, kept = split(PARAMS, patterns)
    assert sorted(traverse_util.flatten_dict(chosen, sep="/")) == trained
    assert merged(chosen, kept) == PARAMS


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(
        PatternError, match=r"'Dense_1', which matches no parameter; the model has Conv_0, Block_0"
    ):
        split(PARAMS, ("^Dense_0", "Dense_1"))


def run(config, workdir, **options):
    """The metrics of the epochs of a run, and its weights by path."""
    with Report(Console(file=io.StringIO()), workdir) as report:
        (result,) = train(config, report, **options)
    found = load_weights(workdir / "weights" / "seed_0", variable_shapes(config))
    return result, traverse_util.flatten_dict(found, sep="/")


def variable_shapes(config):
    return Program(config, load_dataset(config)).variable_shapes


def initial(config):
    variables = Program(config, load_dataset(config)).initial(0)
    return traverse_util.flatten_dict(jax.tree.map(np.asarray, variables), sep="/")


def test_a_head_learns_on_a_frozen_backbone(make_config, tmp_path):
    losses = {}
    for precision in ("float32", "dfp16_forced"):
        config = make_config(model=MODEL, precision=precision, trained=("^Dense_0",), warmup=0.0)
        result, found = run(config, tmp_path / precision)
        start = initial(config)
        assert found.keys() == start.keys()
        for name, leaf in start.items():
            if name.startswith("params/Dense_0"):
                assert np.abs(found[name] - leaf).max() > 1e-3
            elif name.endswith("kernel") and precision != "float32":
                np.testing.assert_array_equal(found[name], dfpjax.quantize(leaf, blocks=dfpjax.Blocks()))
            else:
                np.testing.assert_array_equal(found[name], leaf)
        losses[precision] = result.test_loss
    assert losses["dfp16_forced"] == pytest.approx(losses["float32"], rel=1e-3)


def test_a_stopped_run_with_frozen_kernels_goes_on_bit_for_bit(make_config, tmp_path):
    config = make_config(model=MODEL, precision="dfp16_forced", trained=("^Dense_0",))
    _, whole = run(config, tmp_path / "whole")
    asked = itertools.count()
    with pytest.raises(Stopped):
        run(config, tmp_path / "stopped", stop=lambda: next(asked) == 3)
    _, resumed = run(config, tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.parametrize("gradient_dtype", ["float32", "dfp16"])
def test_several_devices_share_frozen_kernels(make_config, tmp_path, gradient_dtype):
    config = make_config(model=MODEL, precision="dfp16_forced", trained=("^Dense_0",), warmup=0.0)
    alone, _ = run(config, tmp_path / "alone")
    shared = dataclasses.replace(config, mesh=(2,), gradient_dtype=gradient_dtype)
    result, _ = run(shared, tmp_path / "shared")
    assert result.test_loss == pytest.approx(alone.test_loss, rel=1e-3)


def test_what_trains_by_default_is_everything(make_config):
    state = Program(config := make_config(model=MODEL), load_dataset(config)).state_shapes
    assert state.kept == {} and "Dense_0" in state.params
