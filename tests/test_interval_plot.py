"""The band of an interval claims no more than is known between the eps that were measured."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from odejax.plots import draw_interval

EPS = (0.0, 0.1, 0.3, 0.4)
ATTACKED = (0.9, 0.8, 0.5, 0.2)
PROVEN = (0.9, 0.6, 0.1, 0.0)


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def band(axis, at):
    """The lower and upper end of what is shaded at `at`."""
    (path,) = axis.collections[0].get_paths()
    ys = np.linspace(-0.05, 1.05, 2201)
    inside = path.contains_points(np.stack([np.full_like(ys, at), ys], axis=1))
    return ys[inside].min(), ys[inside].max()


@pytest.mark.parametrize(
    ("at", "low", "high"), [(0.05, 0.6, 0.9), (0.15, 0.1, 0.8), (0.29, 0.1, 0.8), (0.35, 0.0, 0.5)]
)
def test_it_reaches_from_what_is_proven_beyond_to_what_is_broken_before(axis, at, low, high):
    draw_interval(axis, EPS, ATTACKED, PROVEN)
    np.testing.assert_allclose(band(axis, at), (low, high), atol=1e-3)


def test_a_finer_proof_is_drawn_where_it_is_known(axis):
    draw_interval(axis, EPS, ATTACKED, (0.9, 0.7, 0.6, 0.1), proven_at=(0.0, 0.05, 0.1, 0.4))
    for at, low, high in ((0.02, 0.7, 0.9), (0.07, 0.6, 0.9), (0.2, 0.1, 0.8), (0.39, 0.1, 0.5)):
        np.testing.assert_allclose(band(axis, at), (low, high), atol=1e-3)


def test_without_a_certificate_the_band_begins_at_zero_and_no_proof_is_drawn(axis):
    draw_interval(axis, EPS, ATTACKED, None)
    assert band(axis, 0.2)[0] == pytest.approx(0, abs=1e-3)
    assert "certified" not in axis.get_legend_handles_labels()[1]
