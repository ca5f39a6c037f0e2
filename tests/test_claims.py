"""The ledger of the papers' claims: complete, and right about how each was measured."""

import dataclasses
import json
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from experiments.enresnet import cifar as enresnet_cifar
from experiments.ledger import claims, report
from experiments.ledger.printed import all_claims, claimed
from experiments.lib.run import UsageError, execute
from experiments.nmode import cifar as nmode_cifar, mnist as nmode_mnist
from odejax.evaluation import load_result, save_result

# How many figures each table has, counted by hand in the papers' texts: rows times columns, without
# those that an earlier table has.
FIGURES = {
    ("natural", "Section 4.2"): 2 * 2,
    ("natural", "Table 1"): 2 * 2 * 2 * 4,
    ("natural", "Table 2"): 4 * 2 - 1,  # 69.94 is Section 4.2's
    ("natural", "Fig. 3"): 1,
    ("natural", "Appendix A"): 1,
    ("nmode", "Section 4.2"): 2,
    ("nmode", "Table 1"): 6 * 6,
    ("nmode", "Table 2"): 3 * 6 * 3,
    ("nmode", "Table 3"): 4 + 7 + 6 * 2,  # MNIST: clean, attacked; CIFAR-10
    ("nmode", "Table 4"): 2 * 2,
    ("nmode", "Table 5"): 4 * 2,  # the ratios are left out
    ("nmode", "Section 5.2.3"): 4 + 3 - 1,  # 95.46 is Table 3's
    ("enresnet", "Table 1"): 9,
    ("enresnet", "Table 2"): 10 * 4,
    ("enresnet", "Table 3"): 6 * 3,
    ("enresnet", "Table 4"): 4,
    ("enresnet", "Table 5"): 4 * 4,
    ("enresnet", "Table 6"): 2 * 3,
    ("enresnet", "Table 7"): 4 * 4,
    ("enresnet", "Table 8"): 4,  # of WRN-14-2; En2 ResNet20 is Table 2's
    ("enresnet", "Table 9"): 2 * 3,
    ("enresnet", "Table 10"): 2 * 3,
    ("enresnet", "Section 4.1"): 2 + 2,  # TRADES; parameters
    ("enresnet", "Section 4.2"): 1,
    ("enresnet", "Section 4.3"): 1,
    ("enresnet", "Section 4.4, natural"): 3,
    ("enresnet", "Section 4.4"): 4,
    ("enresnet", "Section 4.4, integrated"): 2 * 4,
    ("structured", "l2 attack, margin 0.07"): 5 * 9,
}


def test_every_figure_of_the_papers_is_listed_once():
    assert Counter((c.paper, c.table) for c in all_claims()) == FIGURES
    keys = [(c.paper, c.table, c.dataset, c.model, c.attack, c.norm, c.eps) for c in all_claims()]
    assert max(Counter(keys).values()) == 1
    # Nor does one stand in two tables. A paper may contradict itself, with another figure.
    across = [(c.paper, c.dataset, c.model, c.attack, c.eps, c.claimed) for c in all_claims()]
    assert max(Counter(across).values()) == 1


def test_an_accuracy_is_a_percentage_in_a_ball():
    for claim in all_claims():
        assert claim.norm in ("", "linf", "l2")
        assert 0 <= claim.radius <= 1
        if claim.is_quantity:
            assert claim.eps == ""
            continue
        assert 0 <= claim.claimed <= 100
        assert (claim.attack == "clean") == (claim.norm == "")
        # *enresnet* alone attacks without an eps: its C&W minimises the perturbation.
        assert (claim.eps == "") == (claim.attack in ("clean", "C&W"))
        assert claim.attack != "C&W" or claim.paper == "enresnet"
    # Tables 2, 3, 5 to 10 and Section 4.4, row by row.
    assert sum(c.attack == "C&W" for c in all_claims()) == 10 + 6 + 4 + 2 + 4 + 1 + 2 + 2 + 3
    quantities = {(c.table, c.attack): c.claimed for c in all_claims() if c.is_quantity}
    assert quantities["Section 4.2", "tau"] == 0.5
    # Eq. (4) with the perturbation of 0.8: lambda = 5, which Table 1 is solved with.
    assert 0.5 * 0.8 / (quantities["Section 4.2", "epsilon"]) + 1 == pytest.approx(5)
    assert quantities["Fig. 3", "crossing eps"] == 33
    parameters = {c.model: c.claimed for c in all_claims() if c.attack == "parameters, M"}
    assert parameters == {"ResNet20": 0.27, "ResNet44": 0.66, "WRN-14-2": 0.69}


def test_quoted_figures_name_their_source():
    assert Counter(c.quoted for c in all_claims() if c.paper == "nmode") == {
        "": 133 - 63,
        "Yang et al. 2023": 5 * 3 * 3,  # Table 2, all but nmODE
        "Huang et al. 2022": 3 + 2 + 3 + 5 * 2,  # Table 3, all but nmODE
    }
    others = {(c.paper, c.quoted, c.claimed) for c in all_claims() if c.quoted}
    assert {figure for figure in others if figure[0] != "nmode"} == {
        ("natural", "Dupont et al. 2019", 53.7),
        ("enresnet", "Zhang et al. 2019", 84.92),
        ("enresnet", "Zhang et al. 2019", 56.61),
    }


def test_sizes_and_epochs_are_those_that_the_papers_give():
    unknown = Counter((c.paper, c.table) for c in all_claims() if not c.size_given)
    assert unknown == {
        ("natural", "Appendix A"): 1,
        ("nmode", "Table 2"): 45,
        ("nmode", "Table 3"): 18,
        ("nmode", "Table 4"): 4,
        ("nmode", "Section 5.2.3"): 5,  # all but nmODE
        ("enresnet", "Section 4.1"): 2,
    }
    given = {(c.paper, c.dataset, c.model): c.epochs for c in all_claims() if c.epochs}
    assert given["natural", "mnist", "Neural ODE"] == 100
    assert given["natural", "cifar10", "Neural ODE"] == 200
    assert given["nmode", "mnist", "nmODE"] == 100
    assert given["nmode", "cifar10", "ResNet + nmODE"] == 1000
    assert given["nmode", "cifar10", "TRADES + nmODE"] == 100
    assert given["enresnet", "cifar100", "ResNet20"] == 200
    assert given["structured", "cifar10", "non-expansive"] == 100
    # Table A1 is of the neural ODEs alone.
    assert ("natural", "mnist", "ResNet-50") not in given


def test_figures_are_those_of_the_papers():
    table = claimed("natural", "mnist", "Neural ODE", "Table 1", "Section 4.2")
    assert table["PGD-40", "linf", 0.5] == 75.23
    assert table["clean", "", 0] == 99.05
    table = claimed("enresnet", "cifar10", "En2 ResNet20", "Table 2")
    assert table["IFGSM-20", "linf", round(8 / 255, 6)] == 50.06
    assert table["C&W", "linf", 0] == 66.47
    # The paper has two figures for one network.
    for where, figure in (("Table 2", 53.03), ("Section 4.2", 53.05)):
        table = claimed("enresnet", "cifar10", "En2 ResNet110", where)
        assert table["IFGSM-20", "linf", round(8 / 255, 6)] == figure
    table = claimed("structured", "cifar10", "non-expansive", "l2 attack, margin 0.07")
    assert table["PGD-10", "l2", round(36 / 255, 6)] == 79.4
    (dupont,) = (c for c in all_claims() if c.quoted.startswith("Dupont"))
    assert (dupont.claimed, dupont.deviation) == (53.7, 0.2)


def test_what_no_command_measures_says_why(tmp_path):
    entries = claims.ledger(claims.PAPERS, tmp_path)
    never = Counter(e["not_measured"] for e in entries if "command" not in e)
    missing = "no command measures it: no experiment has "
    assert never == {
        # B-NODE of Table 2; the rows of Table 3 but nmODE's; TRADES; Dupont et al.
        "quoted from another paper": 9 + 18 + 2 + 1,
        missing + "nmode's B-NODE": 2,
        missing + "nmode's ODE-TRADES": 1,  # on CIFAR-10
        missing + "natural's Fig. 3": 1,
    }
    runnable = [e for e in entries if "command" in e]
    # The numbers of parameters need no run.
    assert Counter(e.get("not_measured") for e in runnable) == {
        "not run yet": len(entries) - 34 - 3,
        None: 3,
    }


def bracket(eps, attacked, certified, flags=()):
    return {
        "eps": eps,
        "n": 100,
        "attacked": attacked / 100,
        "certified": certified / 100,
        "per_attack": {"PGD-40": (attacked + 1) / 100},
        "per_certificate": {"relaxed": certified / 100},
        "flags": dict.fromkeys(flags, "many"),
    }


def record(clean, attacked, certified, flags=()):
    linf = [bracket(eps, attacked, certified, flags) for eps in (0.01, 0.03, 0.05)]
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
        "NODE/0": record(97, 50, 0),
    }
    epochs = {name: net.epochs or 100 for name, net in nmode_mnist.NETWORKS.items()}

    def entries_of(epochs):
        result = {"settings": {"epochs": epochs}, "runs": runs}
        save_result(tmp_path / "nmode_mnist_mnist.json", "nmode_mnist", result)
        return claims.ledger(["nmode"], tmp_path)

    cut_short = entries_of(dict.fromkeys(epochs, 1))
    assert report.counts(cut_short) == {
        "as in the paper": 0,
        "its network, shorter training": 2,
        "smaller network": 0,
        "size not given": 3,  # NODE in Table 2, under PGD-40
        "not measured": 133 - 5,
    }
    short = next(e["instead"] for e in cut_short if e["table"] == "Table 5" and "instead" in e)
    marks = (short["papers_size"], short["papers_epochs"], short["trained_epochs"])
    assert marks == ("yes", "no", 1)

    entries = entries_of(epochs)
    measured = [entry for entry in entries if "not_measured" not in entry]
    assert len(measured) == 2  # Table 2's nmODE is that of t = 1, which was not run
    clean, attacked = (e for e in measured if e["table"] == "Table 5")
    assert clean["papers_attack"] == pytest.approx(98.5)
    assert clean["deviation"] == pytest.approx(np.sqrt(0.5))
    assert "worst_attack" not in clean
    assert attacked["papers_attack"] == pytest.approx(36)
    assert attacked["worst_attack"] == pytest.approx(35)
    assert attacked["certified"] == pytest.approx(15)
    assert attacked["flags"] == ["vanishing gradients"]
    assert (attacked["seeds"], attacked["n"]) == (2, 100)
    assert (attacked["papers_size"], attacked["papers_epochs"]) == ("yes", "yes")
    assert "nmode.mnist --dataset mnist" in attacked["command"]
    # A network whose size the paper does not give counts in none of the three.
    node = [e for e in entries if e["model"] == "NODE" and "instead" in e]
    assert {(e["attack"], e["not_measured"]) for e in node} == {("PGD-40", "size not given")}
    assert all(e["quoted"] == "Yang et al. 2023" for e in node)
    assert {e["instead"]["papers_size"] for e in node} == {"not given"}
    assert {e["instead"]["papers_epochs"] for e in node} == {"not given"}
    assert all(e["claimed_deviation"] > 1 for e in node)  # the paper's, not ours


def test_sixty_epochs_are_not_the_papers_thousand(tmp_path):
    ball = bracket(36 / 255, 10, 0) | {"per_attack": {"PGD-50": 0.2}}
    measured = {"device": "gpu", "clean_accuracy": 0.9, "balls": {"linf": [], "l2": [ball]}}
    for preset in ("cpu", "paper"):
        settings = dataclasses.asdict(nmode_cifar.PRESETS[preset]["cifar10"])
        result = {"settings": settings, "runs": {"ResNet + nmODE": measured}}
        save_result(tmp_path / f"nmode_cifar10_{preset}.json", "nmode_cifar", result)
        entries = claims.ledger(["nmode"], tmp_path)
        of_net = [e for e in entries if e["model"] == "ResNet + nmODE"]
        kind = {"cpu": "smaller network", "paper": "its network, shorter training"}[preset]
        assert [e["not_measured"] for e in of_net] == [kind, kind]
        assert not any(map(report.not_reached, of_net))  # 91.36 claimed, but not of this network
        attacked = of_net[1]["instead"]
        assert (attacked["papers_attack"], attacked["worst_attack"]) == (20, 10)
        assert (attacked["n"], attacked["seeds"]) == (100, 1)
        assert attacked["papers_size"] == {"cpu": "no", "paper": "yes"}[preset]
        assert attacked["papers_epochs"] == "no"
        assert attacked["trained_epochs"] == {"cpu": 2, "paper": 60}[preset]
        assert attacked["result"] == f"nmode_cifar10_{preset}.json"


def enresnet_settings():
    settings = dataclasses.asdict(enresnet_cifar.SIZES["paper"])
    del settings["ball"]
    # As JSON has them.
    return settings | {"depths": {str(paper): d for paper, d in settings["depths"].items()}}


def test_blind_attacks_and_ensembles_are_found_by_their_kind(tmp_path):
    blind = {"device": "gpu", "per_attack": {"FGSM": 0.6, "IFGSM-20": 0.5, "C&W": 0.7}}
    runs = {"blind/ResNet20 <- En5 ResNet20/0": blind}
    settings = enresnet_settings()

    def measured(settings):
        result = {"settings": settings, "runs": runs}
        save_result(tmp_path / "enresnet_cifar10_paper.json", "enresnet_cifar", result)
        entries = claims.ledger(["enresnet"], tmp_path)
        return [e for e in entries if "not_measured" not in e and "value" not in e]

    assert measured(settings | {"epochs": 1}) == []
    assert measured(settings | {"pgd_steps": 1}) == []
    entries = measured(settings)
    assert [(e["table"], e["attack"], e["papers_attack"]) for e in entries] == [
        ("Table 3", "FGSM", 60),
        ("Table 3", "IFGSM-20", 50),
        ("Table 3", "C&W", 70),
    ]
    assert [e["n"] for e in entries] == [1000, 1000, 1000]


def test_a_figure_without_eps_is_compared_with_no_other_attack(tmp_path):
    robust = bracket(8 / 255, 10, 0) | {"device": "gpu", "clean_accuracy": 0.8}
    robust["per_attack"] = {"FGSM": 0.6, "IFGSM-20": 0.5, "C&W": 0.7}
    runs = {"robust/En2 ResNet110/0": robust}
    result = {"settings": enresnet_settings(), "runs": runs}
    save_result(tmp_path / "enresnet_cifar10_paper.json", "enresnet_cifar", result)
    entries = [e for e in claims.ledger(["enresnet"], tmp_path) if e["model"] == "En2 ResNet110"]
    entries = {(e["table"], e["attack"]): e for e in entries if "not_measured" not in e}
    assert {key: report.not_reached(entry) for key, entry in entries.items()} == {
        ("Table 2", "clean"): False,
        ("Table 2", "FGSM"): True,
        ("Table 2", "IFGSM-20"): True,
        ("Table 2", "C&W"): False,
        ("Section 4.2", "IFGSM-20"): True,  # the paper's second figure for the same
    }
    assert entries["Table 2", "C&W"]["papers_attack"] == 70
    assert entries["Table 2", "C&W"]["measured_eps"] == 8 / 255


@pytest.mark.parametrize(("claim", "above"), [(44.0, False), (47.0, True)])
def test_a_claim_above_the_worst_attack_counts_beyond_sampling_error(claim, above):
    # Clopper-Pearson for 35 of 100: 25.7 to 45.2 %.
    assert report.not_reached({"claimed": claim, "worst_attack": 35.0, "n": 100}) == above
    assert not report.not_reached({"claimed": 99.0, "papers_attack": 35.0})


def test_the_committed_results_count_by_hand():
    """Each sum is of rows of the papers' tables, times the attacks that the results have."""
    entries = claims.ledger(claims.PAPERS)
    of_paper = {p: [e for e in entries if e["paper"] == p] for p in claims.PAPERS}
    none = dict.fromkeys(report.counts([]), 0)
    assert report.counts(of_paper["natural"]) == none | {
        "smaller network": 2 + 2 * 2 * 4,  # MNIST, both networks
        "not measured": 45 - 18,
    }
    # Table 1, tau and epsilon; nmODE in Tables 2 and 3, nmODE+ in Table 5, Fashion-MNIST.
    as_in_paper = 36 + 2 + 9 + 3 + 8 + 1
    assert report.counts(of_paper["nmode"]) == none | {
        "as in the paper": as_in_paper,
        "smaller network": 2,  # ResNet + nmODE on CIFAR-10
        "size not given": 4 * 9 + 2 + 4,  # Table 2, Fashion-MNIST, Table 4
        "not measured": 133 - as_in_paper - 2 - 42,
    }
    assert report.counts(of_paper["enresnet"]) == none | {
        "as in the paper": 3,  # numbers of parameters
        "smaller network": 3 + 2 + 3 * 4,  # three ResNet20s: clean, under IFGSM-20, robust
        "not measured": 146 - 20,
    }
    assert report.counts(of_paper["structured"]) == none | {"not measured": 45}
    assert of_paper["ssp"] == []

    attacked = [e for e in entries if "worst_attack" in e]
    assert len(attacked) == 9 + 2 + 4  # nmODE on MNIST
    drawn = report.figure(entries)
    title = drawn.get_suptitle().replace("\n", " ")
    plt.close(drawn)
    assert f"{sum(map(report.not_reached, attacked))} of 15 claims under attack" in title
    for entry in entries:
        measurement = entry.get("instead", entry)
        if "papers_attack" in measurement:
            assert measurement["seeds"] >= 1
            assert measurement["papers_size"] in ("yes", "no", "not given")
            assert measurement["papers_epochs"] in ("yes", "no", "not given")
            assert ("n" in measurement) == (entry["attack"] != "clean")

    console = Console(width=80, record=True)
    console.print(report.counts_table(entries))
    rows = [line.split() for line in console.export_text().splitlines()]
    shown = {row[0]: row[1:] for row in rows if len(row) == 9 and row[-2] == "of"}
    assert set(shown) == {"natural", "nmode", "enresnet", "structured", "all"}
    for row in shown.values():
        assert int(row[0]) == sum(map(int, row[1:5]))
    assert shown["all"][:5] == [str(n) for n in (369, as_in_paper + 3, 37, 42, 228)]


def test_numbers_of_parameters_are_the_papers():
    sizes = {
        e["model"]: (e["claimed"], e["value"])
        for e in claims.ledger(["enresnet"])
        if e["attack"] == "parameters, M"
    }
    assert set(sizes) == {"ResNet20", "ResNet44", "WRN-14-2"}
    for paper, measured in sizes.values():
        assert measured == pytest.approx(paper, abs=0.01)
    # With 10 classes the first two are the paper's to both digits. Each of the 90 others that
    # CIFAR-100 has costs 64 weights and a bias.
    assert sizes["ResNet20"][1] - 90 * 65e-6 == pytest.approx(0.272282)
    assert sizes["ResNet44"][1] - 90 * 65e-6 == pytest.approx(0.661146)


def test_the_committed_ledger_is_that_of_the_committed_results(tmp_path, capsys):
    execute(claims.EXPERIMENT, claims.Config(out=tmp_path))
    shown = capsys.readouterr().out
    assert all(f"{paper} " in shown for paper in ("natural", "nmode", "enresnet", "structured"))
    assert max(map(len, shown.splitlines())) <= 80
    assert (tmp_path / "claims.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "result.json").read_text())
    committed = load_result(claims.RESULTS / "claims.json", "claims")
    assert (written["claims"], written["ssp"]) == (committed["claims"], committed["ssp"])


def test_an_unknown_paper_is_named(tmp_path):
    with pytest.raises(UsageError, match="unknown paper 'resnet'; accepted: natural, nmode"):
        execute(claims.EXPERIMENT, claims.Config(papers=("resnet",), out=tmp_path))
    with pytest.raises(UsageError, match="no papers"):
        execute(claims.EXPERIMENT, claims.Config(papers=(), out=tmp_path))
