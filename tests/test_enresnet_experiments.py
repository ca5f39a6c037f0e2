"""The experiments of *enresnet*, small."""

import json

import pytest

from experiments import enresnet_fig4
from experiments._cli import UsageError


def test_fig4_keeps_its_principles_where_the_grid_resolves_the_solution(tmp_path):
    config = enresnet_fig4.Config(points=32, steps=120, out=tmp_path)
    enresnet_fig4.main(config)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (tmp_path / "fig4.png").stat().st_size > 10_000
    solutions = result["solutions"]
    # Diffusion makes every solution flatter.
    for records in solutions.values():
        gradients = [r["gradient"] for r in records if r["finite"]]
        assert gradients == sorted(gradients, reverse=True)
        assert records[-1]["finite"]
    for record in solutions["smooth"]:
        assert record["gradient"] < record["bound"]
        assert record["min"] > -0.03
        assert record["max"] < 1.03


def test_no_steps_are_refused():
    with pytest.raises(UsageError, match="steps must be at least 1; got 0"):
        enresnet_fig4.main(enresnet_fig4.Config(steps=0))
