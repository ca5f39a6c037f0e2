"""Which experiment measures a claim of a paper, and how its result is read."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ..enresnet import cifar as enresnet_cifar
from ..enresnet.networks import JOINED, NETWORKS, TABLES, printed_pairs, shown
from ..lib.report import by_name, mean_and_deviation
from ..natural import tables as natural
from ..nmode import cifar as nmode_cifar, mnist as nmode_mnist
from ..nmode.table1 import COLUMNS, printed_row
from ..structured import networks as structured
from .printed import Claim

# The small networks of `natural` that stand for the paper's.
STAND_INS = {"ResNet-50": "ResNet", "Neural ODE": "Neural ODE, t1 = 1"}
FOLDER = "--data-dir FOLDER"


@dataclasses.dataclass(frozen=True)
class Source:
    """An experiment that measures some claims: `read(result, claim, network)`, or None.

    A run with other `settings` measures none.
    """

    result: str  # its file in `experiments/results`; empty if it needs none
    kind: str
    command: str
    read: Callable[[dict[str, Any], Claim, str], dict[str, Any] | None]
    network: str = ""  # the claim's network, as the experiment calls it
    epochs: int | None = None  # of the preset; None: nothing is trained
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    smaller: bool = False


def _measured(records: list[dict[str, Any]], claim: Claim, bracket_of) -> dict[str, Any] | None:
    """The means over `records`, one for each seed."""
    if not records:
        return None
    told = {"seeds": len(records), "device": records[0]["device"]}
    if claim.attack == "clean":
        if "clean_accuracy" not in records[0]:
            return None
        return told | _mean([record["clean_accuracy"] for record in records])
    brackets = [bracket_of(record) for record in records]
    if None in brackets or claim.attack not in brackets[0]["per_attack"]:
        return None
    first = brackets[0]
    told |= _mean([b["per_attack"][claim.attack] for b in brackets])
    if "n" in first:
        told["n"] = first["n"]
    if not claim.eps:  # of another ball than the claim's, which is not known
        return told | ({"measured_eps": first["eps"]} if "eps" in first else {})
    if "attacked" in first:  # a transfer attack has no interval
        told |= {
            "worst_attack": 100 * float(np.mean([b["attacked"] for b in brackets])),
            "certified": 100 * float(np.mean([b["certified"] for b in brackets])),
            "flags": sorted({flag for b in brackets for flag in b["flags"]}),
        }
    return told


def _mean(fractions: list[float]) -> dict[str, float]:
    mean, deviation = mean_and_deviation(fractions)
    return {"papers_attack": mean} | ({} if deviation is None else {"deviation": deviation})


def _at(brackets: list[dict[str, Any]], claim: Claim) -> dict[str, Any] | None:
    """The one of the claim's eps."""
    return next((b for b in brackets if np.isclose(b["eps"], claim.radius)), None)


def _from_balls(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any] | None:
    records = by_name(result).get(name, [])
    return _measured(records, claim, lambda record: _at(record["balls"][claim.norm], claim))


def _from_brackets(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any] | None:
    records = by_name(result).get(name, [])
    return _measured(records, claim, lambda record: _at(record["brackets"], claim))


def _from_enresnet(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any] | None:
    settings = result["settings"]
    attacked = {"n": settings["test_images"]}  # which blind attacks do not repeat
    found = _measured(by_name(result).get(name, []), claim, lambda record: attacked | record)
    # A small network has a name of the paper's, but not its depth.
    return found and {"network": shown(name, settings["depths"])} | found


def _from_table1(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any] | None:
    family, t = name.split(" t=")
    for row in result["rows"]:
        if (row["family"], f"{row['t']:g}") == (family, t):
            ours = float(printed_row(row["Dopri5, 1e-7"])[COLUMNS.index(claim.attack)])
            return {"device": result["device"], "value": ours}
    return None


def _from_figures(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any] | None:
    return {"device": result["device"], "value": result["example"][claim.attack]}


def _count_parameters(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any]:
    """In millions; no weight is made for it."""
    make = eqx.nn.make_with_state(NETWORKS[name](enresnet_cifar.SIZES["paper"]))
    classes = {"cifar10": 10, "cifar100": 100}[claim.dataset]
    model, _ = eqx.filter_eval_shape(make, (32, 32, 3), classes, key=jax.random.key(0))
    leaves = (leaf for leaf in jax.tree.leaves(model) if isinstance(leaf, jax.ShapeDtypeStruct))
    return {"value": sum(leaf.size for leaf in leaves) / 1e6}


def sources(claim: Claim) -> list[Source]:
    """The experiments that measure a claim, that of the paper's size first; none if there is no
    command.
    """
    if claim.is_quantity:
        return _of_quantities(claim)
    by_paper = {
        "natural": _of_natural,
        "nmode": _of_nmode,
        "enresnet": _of_enresnet,
        "structured": _of_structured,
    }
    return by_paper[claim.paper](claim)


def _of_quantities(claim: Claim) -> list[Source]:
    if (claim.paper, claim.table) == ("nmode", "Table 1"):
        kind, read = "nmode_table1", _from_table1
    elif claim.paper == "nmode":
        kind, read = "nmode_figures", _from_figures
    elif claim.attack == "parameters, M":
        return [
            Source("", "", "python -m experiments.ledger.claims", _count_parameters, claim.model)
        ]
    else:
        return []
    return [Source(kind, kind, f"python -m experiments.{kind}", read, claim.model)]


def _of_natural(claim: Claim) -> list[Source]:
    networks = natural.PRESETS["paper"][claim.dataset].networks
    if claim.table not in natural.PRINTED or claim.model not in networks:
        return []
    stand_in = STAND_INS.get(claim.model, "")
    small = natural.PRESETS["cpu"][claim.dataset].networks
    out = []
    for preset, every, name in (("paper", networks, claim.model), ("cpu", small, stand_in)):
        if name in every:
            out.append(
                Source(
                    f"natural_{claim.dataset}_{preset}",
                    natural.KIND,
                    f"python -m experiments.natural.tables --preset {preset} "
                    f"--dataset {claim.dataset} {FOLDER}",
                    _from_brackets,
                    name,
                    every[name].epochs,
                    smaller=preset == "cpu",
                )
            )
    return out


def _of_nmode(claim: Claim) -> list[Source]:
    if claim.dataset in ("mnist", "fashion_mnist"):
        # Section 5.1.3 can be read as t = 0.05 on MNIST and t = 1 on Fashion-MNIST; the more
        # robust of the two stands for Tables 2 and 3.
        name = "nmODE t=1" if claim.model == "nmODE" else claim.model
        if name not in nmode_mnist.NETWORKS:
            return []
        return [
            Source(
                f"nmode_mnist_{claim.dataset}",
                nmode_mnist.KIND,
                f"python -m experiments.nmode.mnist --dataset {claim.dataset} {FOLDER} "
                "--test-images 250",
                _from_balls,
                name,
                nmode_mnist.NETWORKS[name].epochs or nmode_mnist.SETTINGS[claim.dataset].epochs,
            )
        ]
    if claim.model not in nmode_cifar.NETWORKS:
        return []
    return [
        Source(
            f"nmode_{claim.dataset}_{preset}",
            nmode_cifar.KIND,
            f"python -m experiments.nmode.cifar --preset {preset} {FOLDER}",
            _from_balls,
            claim.model,
            nmode_cifar.PRESETS[preset][claim.dataset].epochs,
            _chosen(nmode_cifar.PRESETS[preset][claim.dataset], "depth", "train_images"),
            smaller=preset == "cpu",
        )
        for preset in ("paper", "cpu")
    ]


def _of_enresnet(claim: Claim) -> list[Source]:
    # The prose of Section 4.2 repeats a row of Table 2, with another figure.
    kind = next((kind for kind, tables in TABLES.items() if claim.table in tables), "robust")
    if kind in JOINED:
        pair = tuple(claim.model.split(JOINED[kind]))
        known = pair in printed_pairs(kind, claim.dataset)
    else:
        known = claim.model in NETWORKS
    if not known:
        return []
    return [
        Source(
            f"enresnet_{claim.dataset}_{preset}",
            enresnet_cifar.KIND,
            f"python -m experiments.enresnet.cifar --preset {preset} --dataset {claim.dataset} "
            f"{FOLDER}",
            _from_enresnet,
            f"{kind}/{claim.model}",
            enresnet_cifar.SIZES[preset].epochs,
            _chosen(enresnet_cifar.SIZES[preset], "train_images", "pgd_steps"),
            smaller=preset == "cpu",
        )
        for preset in ("paper", "cpu")
    ]


def _of_structured(claim: Claim) -> list[Source]:
    if claim.model not in structured.NAMES:
        return []
    preset = structured.PRESETS["paper"][claim.dataset]
    return [
        Source(
            f"structured_{claim.dataset}_paper",
            structured.KIND,
            f"python -m experiments.structured.networks --preset paper {FOLDER}",
            _from_brackets,
            claim.model,
            preset.epochs,
            _chosen(preset, "margin"),
        )
    ]


def _chosen(preset: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(preset, name) for name in names}


def why_no_command(claim: Claim) -> str:
    if claim.quoted:
        return "quoted from another paper"
    missing = claim.table if claim.is_quantity else claim.model
    return f"no command measures it: no experiment has {claim.paper}'s {missing}"
