"""Tables 1 to 10 and Figs. 5 and 6 of *enresnet*, from the result alone."""

from typing import Any

from matplotlib.figure import Figure

from odejax.evaluation import confidence_interval
from odejax.plots import colors, set_title

from ..ledger.printed import claimed
from ..lib import report
from ..lib.intervals import CLEAN, Listed
from .networks import TABLES, shown

PAPERS_ATTACKS = ("FGSM", "IFGSM-20", "C&W")
TITLES = {"natural": "natural training", "robust": "PGD training, under PGD"}
WHAT = {"validation": "validation images", "train_accuracy": "training images"}


def _records(result: dict[str, Any], kind: str) -> dict[str, list[dict[str, Any]]]:
    """What was measured, one record for each seed, by network or pair."""
    start = f"{kind}/"
    return {
        name.removeprefix(start): records
        for name, records in report.by_name(result).items()
        if name.startswith(start)
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """Accuracy in %: mean ± deviation over the seeds; the paper's below, for its own networks.

    The clean accuracy is of more images than are attacked; its heading has their number.
    """
    settings = result["settings"]
    dataset, depths = settings["dataset"], settings["depths"]
    ten = dataset == "cifar10"
    heads = {"clean": f"clean, {settings['clean_images']:,}"}
    out = []
    robust = ("clean", *PAPERS_ATTACKS, "AA-rand")
    natural = "Table 1, Section 4.4: natural" if ten else "Table 4: natural"
    for kind, title, columns in (
        ("natural", natural, ("clean", "IFGSM-20")),
        ("robust", f"Tables {'2, 8, 9' if ten else '5, 10'}: PGD-trained", robust),
        ("blind", f"Table {3 if ten else 6}: target <- oracle", PAPERS_ATTACKS),
        ("integrated", "Table 7: trained alone, integrated", robust),
    ):
        measured = _records(result, kind)
        if not measured:
            continue
        columns_of = [heads.get(column, column) for column in columns]
        heading = f"enresnet {title}, {dataset}"
        table = report.table(heading, "", *columns_of, collapse_padding=False)
        for name, records in measured.items():
            table.add_row(shown(name, depths), *(_cell(records, column) for column in columns))
            paper = claimed("enresnet", dataset, name, *TABLES[kind])
            if paper:
                printed = {attack: figure for (attack, _, _), figure in paper.items()}
                cells = (f"{printed[c]:.1f}" if c in printed else "" for c in columns)
                same = name == shown(name, depths)
                table.add_row("  paper" if same else f"  paper, {name}", *cells)
        out.append(table)
    return out


def _cell(records: list[dict[str, Any]], column: str) -> str:
    return report.cell(
        [
            record["clean_accuracy"] if column == "clean" else record["per_attack"][column]
            for record in records
        ]
    )


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader of the tables must know."""
    s = result["settings"]
    low, high = confidence_interval(s["test_images"] // 2, s["test_images"])
    error = 100 * (high - low) / 2
    out = [
        f"{s['preset']}: {s['train_images'] - s['held_out']:,} training images, {s['epochs']} "
        f"epochs of batches of {s['batch_size']}, PGD-{s['pgd_steps']}; clean on the first "
        f"{s['clean_images']:,} test images, attacks on the first {s['test_images']:,}. "
        f"AA-rand: APGD-CE and APGD-DLR, {s['draws']} draws where there is noise. "
        f"95 % sampling error of the attacked figures: up to {error:.0f} points."
    ]
    for kind in ("robust", "integrated"):
        for name, records in _records(result, kind).items():
            flags = sorted({flag for record in records for flag in record["flags"]})
            if flags:
                out.append(f"{shown(name, s['depths'])}: {', '.join(flags)}.")
    return out


def adversarial_examples(result: dict[str, Any]) -> Figure | None:
    """Fig. 6, where an attack on a robust network succeeded."""
    examples = stored_examples(result)
    eps = next((stored["eps"] for stored in examples.values()), 0.0)
    ball = f"L-infinity {255 * eps:.3g}/255"
    title = f"perturbations within {ball} change the predictions of PGD-trained networks"
    return report.examples_figure(examples, f"{result['settings']['dataset']}: {title}")


def stored_examples(result: dict[str, Any]) -> dict[str, Any]:
    """Of the PGD-trained networks, the first seed's."""
    return {
        _shown(name, result): records[0]["example"] | {"eps": records[0]["eps"]}
        for name, records in _records(result, "robust").items()
    }


def _shown(name: str, result: dict[str, Any]) -> str:
    """With its depth here; under a small preset two networks of the paper may be one."""
    own = shown(name, result["settings"]["depths"])
    return own if name == own else f"{own} for {name}"


def listed(result: dict[str, Any]) -> list[Listed]:
    """The networks that were attacked themselves."""
    robust = f"PGD-{result['settings']['pgd_steps']} at 8/255"
    trainings = {"natural": CLEAN, "robust": robust, "integrated": f"{robust}, alone"}
    return [
        Listed(_shown(name, result), training, records, [[record] for record in records])
        for kind, training in trainings.items()
        for name, records in _records(result, kind).items()
    ]


def curves(result: dict[str, Any]) -> Figure:
    """Fig. 5: accuracy by epoch, of the first seed of the first five networks."""
    settings = result["settings"]
    kinds = {kind: _records(result, kind) for kind in TITLES if _records(result, kind)}
    names = [*dict.fromkeys(name for networks in kinds.values() for name in networks)][:5]
    color = colors(names)
    figure, axes = report.panels(
        [(kind, what) for what in WHAT for kind in kinds], columns=len(kinds), size=(4.6, 2.5)
    )
    for (kind, what), axis in axes:
        for name, records in kinds[kind].items():
            if name in names:
                values = [100 * epoch[what] for epoch in records[0]["history"]]
                label, epochs = shown(name, settings["depths"]), range(1, len(values) + 1)
                axis.plot(epochs, values, "-o", ms=3, color=color[name], label=label)
        axis.set_xlabel("epoch")
        axis.set_title(f"{TITLES[kind]}: {WHAT[what]}", fontsize=10)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3, lw=0.5)
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("accuracy (%)")
    n = settings["train_images"] - settings["held_out"]
    report.legend_below(figure, ncols=5, title=f"{settings['dataset']}, {n:,} training images")
    set_title(figure, _finding(kinds))
    return figure


def _finding(kinds: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Where validation accuracy ends, as a sentence."""
    ends = []
    for kind, networks in kinds.items():
        last = [100 * records[0]["history"][-1]["validation"] for records in networks.values()]
        ends.append(f"at {min(last):.0f} to {max(last):.0f} % ({TITLES[kind]})")
    return f"Validation accuracy ends {' and '.join(ends)}"


FIGURES = {"fig5": curves, "fig6": adversarial_examples}
