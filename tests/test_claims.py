"""The ledger of the papers' claims: complete, and right about what was measured."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from experiments import claims, enresnet_cifar, nmode_mnist
from experiments._claims import all_claims, claimed
from experiments._cli import UsageError
from odejax.evaluation import load_result, save_result


def test_every_claim_is_one_figure():
    keys = [(c.paper, c.table, c.dataset, c.model, c.attack, c.norm, c.eps) for c in all_claims()]
    assert max(Counter(keys).values()) == 1
    assert Counter(c.paper for c in all_claims()) == {
        "natural": 44,
        "nmode": 132,
        "enresnet": 144,
        "structured": 45,
    }
    for claim in all_claims():
        if claim.table == "Table 1" and claim.paper == "nmode":
            continue
        assert 0 <= claim.claimed <= 100
        assert (claim.attack == "clean") == (claim.norm == "") == (claim.eps == "")
        assert claim.norm in ("", "linf", "l2")
        assert 0 <= claim.radius <= 1


def test_figures_are_those_of_the_papers():
    table = claimed("natural", "mnist", "Neural ODE", "Table 1", "Section 4.2")
    assert table["PGD-40", "linf", 0.5] == 75.23
    assert table["clean", "", 0] == 99.05
    table = claimed("enresnet", "cifar10", "En2 ResNet20", "Table 2")
    assert table["IFGSM-20", "linf", round(8 / 255, 6)] == 50.06
    table = claimed("structured", "cifar10", "non-expansive", "l2 attack, margin 0.07")
    assert table["PGD-10", "l2", round(36 / 255, 6)] == 79.4


def bracket(eps, left, certified, flags=()):
    return {
        "eps": eps,
        "n": 100,
        "attacked": left / 100,
        "certified": certified / 100,
        "per_attack": {"PGD-40": (left + 1) / 100},
        "per_certificate": {"relaxed": certified / 100},
        "flags": dict.fromkeys(flags, "many"),
    }


def record(clean, left, certified, flags=()):
    linf = [bracket(eps, left, certified, flags) for eps in (0.01, 0.03, 0.05)]
    return {
        "device": "cpu",
        "clean_accuracy": clean / 100,
        "balls": {"linf": linf, "l2": []},
    }


def test_a_measurement_is_the_mean_over_the_seeds(tmp_path):
    runs = {
        "nmODE t=0.05/0": record(98, 30, 10, ["vanishing gradients"]),
        "nmODE t=0.05/1": record(99, 40, 20),
        "nmODE t=0.05 longer/0": record(1, 1, 1),
    }
    epochs = {name: net.epochs or 100 for name, net in nmode_mnist.NETWORKS.items()}

    def entries_of(epochs):
        result = {"settings": {"epochs": epochs}, "runs": runs}
        save_result(tmp_path / "nmode_mnist_mnist.json", "nmode_mnist", result)
        return claims.ledger(claims.PAPERS, tmp_path)

    cut_short = entries_of(dict.fromkeys(epochs, 1))
    assert all("not_measured" in entry for entry in cut_short)
    entries = entries_of(epochs)
    assert len(entries) == len(all_claims())
    measured = [entry for entry in entries if "not_measured" not in entry]
    clean, attacked = (e for e in measured if e["table"] == "Table 5")
    assert clean["papers_attack"] == pytest.approx(98.5)
    assert clean["deviation"] == pytest.approx(np.sqrt(0.5))
    assert "worst_attack" not in clean
    assert attacked["papers_attack"] == pytest.approx(36)
    assert attacked["worst_attack"] == pytest.approx(35)
    assert attacked["certified"] == pytest.approx(15)
    assert attacked["flags"] == ["vanishing gradients"]
    assert (attacked["seeds"], attacked["n"]) == (2, 100)
    assert "nmode_mnist --dataset mnist" in attacked["command"]
    assert len(measured) == 2  # Table 2's nmODE is that of t = 1, which was not run
    reasons = {entry["not_measured"] for entry in entries if "not_measured" in entry}
    assert reasons == {"not run yet", "not among the networks of the experiment"}


def test_blind_attacks_and_ensembles_are_found_by_their_kind(tmp_path):
    blind = {"device": "gpu", "per_attack": {"FGSM": 0.6, "IFGSM-20": 0.5, "C&W": 0.7}}
    runs = {"blind/ResNet20 <- En5 ResNet20/0": blind}
    settings = dataclasses.asdict(enresnet_cifar.PRESETS["paper"])

    def measured(settings):
        result = {"settings": settings, "runs": runs}
        save_result(tmp_path / "enresnet_cifar10_paper.json", "enresnet_cifar", result)
        return [e for e in claims.ledger(["enresnet"], tmp_path) if "not_measured" not in e]

    assert measured(settings | {"epochs": 1}) == []
    assert [(e["table"], e["attack"], e["papers_attack"]) for e in measured(settings)] == [
        ("Table 3", "FGSM", 60),
        ("Table 3", "IFGSM-20", 50),
        ("Table 3", "C&W", 70),
    ]


@pytest.mark.parametrize(("claim", "above"), [(44.0, False), (47.0, True)])
def test_a_claim_above_the_worst_attack_counts_beyond_sampling_error(claim, above):
    # Clopper-Pearson for 35 of 100: 25.7 to 45.2 %.
    assert claims.not_reached({"claimed": claim, "worst_attack": 35.0, "n": 100}) == above
    assert not claims.not_reached({"claimed": 99.0, "papers_attack": 35.0})


def test_the_committed_ledger_is_that_of_the_committed_results(tmp_path, capsys):
    claims.main(claims.Config(out=tmp_path))
    shown = capsys.readouterr().out
    assert all(f"{paper} " in shown for paper in ("natural", "nmode", "enresnet", "structured"))
    assert max(map(len, shown.splitlines())) <= 80
    assert (tmp_path / "claims.png").stat().st_size > 10_000
    ours = json.loads((tmp_path / "claims.json").read_text())
    committed = load_result(claims.RESULTS / "claims.json", "claims")
    assert (ours["claims"], ours["ssp"]) == (committed["claims"], committed["ssp"])


def test_an_unknown_paper_is_named(tmp_path):
    with pytest.raises(UsageError, match="unknown paper 'resnet'; accepted: natural, nmode"):
        claims.main(claims.Config(papers=("resnet",), out=tmp_path))
    with pytest.raises(UsageError, match="no papers"):
        claims.main(claims.Config(papers=(), out=tmp_path))
