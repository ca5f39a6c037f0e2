"""Saved networks: read back bit for bit, or refused."""

import equinox as eqx
import jax
import numpy as np
import pytest
from helpers import all_models, predictor_of

import odejax

NAME = "ResNet BatchNorm"  # with state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "net"
    odejax.save_network(path, predictor_of(NAME))
    return path


def test_what_is_read_is_what_was_written(saved):
    like = eqx.filter_eval_shape(
        lambda key: odejax.Predictor(*all_models[NAME](key)), jax.random.key(0)
    )
    for target in (predictor_of(NAME, seed=1), like):
        assert eqx.tree_equal(odejax.load_network(saved, target), predictor_of(NAME))
    assert [path.name for path in saved.parent.iterdir()] == ["net"]


def test_no_flipped_bit_is_used(saved, tmp_path):
    content, rng, path = saved.read_bytes(), np.random.default_rng(0), tmp_path / "net"
    for place in [*range(0, 400, 10), *rng.integers(8 * len(content), size=40)]:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="net is damaged, or was not written by save_network"):
            odejax.load_network(path, predictor_of(NAME))


def test_another_structure_and_no_file_are_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="net holds a network of another structure"):
        odejax.load_network(saved, predictor_of("MLP"))
    with pytest.raises(ValueError, match="missing cannot be read"):
        odejax.load_network(tmp_path / "missing", predictor_of("MLP"))
    with pytest.raises(ValueError, match="path must be a local path; got gs://net"):
        odejax.save_network("gs://net", predictor_of("MLP"))
