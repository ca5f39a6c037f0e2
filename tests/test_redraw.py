"""Every committed figure can be drawn again from a committed result."""

import pytest

from experiments import redraw
from experiments.lib import report


def test_the_figures_of_a_result_are_drawn_where_they_are_kept(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "figures").mkdir()
    kept = report.KEPT / "results" / "ssp_burgers.json"
    (tmp_path / "results" / kept.name).write_bytes(kept.read_bytes())
    for module in (redraw, report):
        monkeypatch.setattr(module, "KEPT", tmp_path)
    redraw.main("burgers")
    assert (tmp_path / "figures" / "ssp_burgers.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "results" / kept.name).read_bytes() == kept.read_bytes()
    assert capsys.readouterr().out == "ssp_burgers burgers.png\n"


def test_every_figure_belongs_to_a_result_of_an_experiment():
    drawn = {experiment.kind: experiment for experiment in redraw.every_experiment()}
    results = {path.stem for path in (report.KEPT / "results").glob("*.json")}
    for figure in (report.KEPT / "figures").glob("*.png"):
        stem = figure.stem
        while stem and stem not in results and not stem.startswith("nmode_fig"):
            stem = stem.rpartition("_")[0]
        assert stem, figure.name
    assert len(drawn) == 24


@pytest.mark.parametrize("name", ["no such result"])
def test_nothing_is_drawn_of_no_result(name, capsys):
    redraw.main(name)
    assert capsys.readouterr().out == ""
