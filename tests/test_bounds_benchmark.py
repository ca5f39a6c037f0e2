"""What the benchmark of bounds compares: the same margins, whole batches or one at a time."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from benchmarks import bounds
from odejax.models import MLP, BatchNorm, ResNet

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # PyTorch's own
JOBS = {
    "MLP": bounds.Job(partial(MLP, width=16), 0.01),
    "ResNet": bounds.Job(partial(ResNet, width=4, depth=2, norm=BatchNorm), 0.005),
}


@pytest.mark.parametrize("name", JOBS)
def test_the_row_of_a_job(name):
    job = dataclasses.replace(JOBS[name], epochs=4, images=4, batch=2)
    row = bounds.run(job, quick=True)
    assert {"odejax, 2 at a time", "odejax, one at a time"} <= set(row["milliseconds"])
    assert row["images"] == 2
    assert 0 < row["certified"] <= 1
    assert row["compile_seconds"] > 0
    assert row["bytes"] > 0
    assert ("auto_LiRPA, one at a time" in row["milliseconds"]) == bounds.INSTALLED
    if bounds.INSTALLED:  # ours is less by what rounding may lose
        low, high = row["odejax_less_auto_LiRPA"]
        assert -2e-2 < low <= high < 1e-5


def test_batches_are_all_images_in_their_order():
    seen = []

    def program(images, labels):
        seen.append(len(images))
        return images + labels[:, None]

    images, labels = np.arange(6.0).reshape(6, 1), np.arange(6)
    all_rows = bounds.in_batches(program, images, labels, 2)()
    np.testing.assert_array_equal(all_rows, images + labels[:, None])
    assert seen == [2, 2, 2]
