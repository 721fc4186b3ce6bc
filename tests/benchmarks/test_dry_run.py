"""The dry run compares like with like."""

import jax
import numpy as np
import pytest

from benchmarks import dry_run


def test_a_perturbation_is_one_unit_in_the_last_place():
    tree = {"a": np.float32([1.0, -3.5, 0.0]), "b": np.full((64, 64), 0.1, np.float32)}
    changed = dry_run.one_ulp(tree, jax.random.key(0))
    for name, leaf in tree.items():
        other = np.asarray(changed[name])
        up, down = np.nextafter(leaf, np.float32(np.inf)), np.nextafter(leaf, np.float32(-np.inf))
        assert np.all((other == up) | (other == down))
    assert 0.4 < np.mean(np.asarray(changed["b"]) > tree["b"]) < 0.6


@pytest.mark.slow
def test_variants_see_the_same_and_part_slowly(tmp_path, capsys):
    arguments = ["--models", "alexnet", "--steps", "3", "--batch", "2", "--size", "67"]
    (row,) = dry_run.main([*arguments, "--out", str(tmp_path / "dry_run")])
    base = np.array(row.losses["float32"])
    assert len(set(base)) == 3
    # With another state, other images or dropout, the first loss would differ by far more than rounding.
    assert row.differences("dfp16")[0] < 1e-3
    assert row.differences("float32, one ulp")[0] < 1e-5
    assert row.differences("dfp16").max() > 0
    assert row.coverage > 0
    assert {path.name for path in tmp_path.iterdir()} == {"dry_run.json", "dry_run.png"}
    assert "| alexnet | 2 |" in capsys.readouterr().out
