"""The parts of pages that come from the code and from results.

    python -m docs_tools.generate

A part is between `<!-- generated: NAME -->` and `<!-- end -->`, and is a function here. The
entries of the reference, `docs/api`, are made by `docs_tools.reference`.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from docs_tools.reference import with_entries
from odejax.evaluation import FLAGS, FlagKind, attack_flags, masking_flags, solver_flags

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def generated(page: Path) -> str:
    """The text of a page with its parts made anew."""
    text = _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}", page.read_text())
    return with_entries(page, text)


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def _times(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def _flags_of(function: Callable[..., Any] | None) -> str:
    """The flags that a function raises: those that its file names. None: those of no such file."""
    if function is None:
        of_functions = set().union(*map(_named_in, (masking_flags, solver_flags, attack_flags)))
        names = set(FLAGS) - of_functions
    else:
        names = _named_in(function)
    return "\n".join(
        f"### {kind.name}\n\n"
        f"- **Raised if** {kind.raised_if}.\n"
        f"- **Why it matters:** {kind.why}.\n"
        f"- **What to do:** {kind.what_to_do}.\n"
        for kind in FLAGS.values()
        if kind.name in names
    )


def _named_in(function: Callable[..., Any]) -> set[str]:
    members = vars(sys.modules[function.__module__]).values()
    return {member.name for member in members if isinstance(member, FlagKind)}


def _ledger(paper: str) -> str:
    from experiments.ledger.report import counts, kinds_of, not_reached

    claims = json.loads((ROOT / "experiments" / "results" / "claims.json").read_text())["claims"]
    own = [claim for claim in claims if claim["paper"] == paper]
    attacked = [claim for claim in own if "worst_attack" in claim]
    kinds, numbers = kinds_of(own), counts(own)
    text = table(["numbers", *kinds], [[len(own), *(numbers[kind] for kind in kinds)]])
    if attacked:
        beyond = sum(map(not_reached, attacked))
        text += (
            f"\nOf the {len(attacked)} accuracies under attack that were measured as in the paper, "
            f"{beyond} exceed our accuracy under all attacks by more than sampling error.\n"
        )
    return text


def _nmode() -> str:
    result = _result("nmode")
    step, attack, errors = (
        result["seconds"]["training step"],
        result["seconds"]["PGD-40"],
        result["errors"],
    )
    rows = []
    for name, seconds in step.items():
        error = f"{errors[name]:.0e}" if name in errors else ""
        ratios = (_times(seconds / step["ReLU"]), _times(attack[name] / attack["ReLU"]))
        rows.append(
            [name, f"{1000 * seconds:.1f}", ratios[0], f"{attack[name]:.2f}", ratios[1], error]
        )
    head = [
        "activation",
        "training step (ms)",
        "x ReLU",
        "PGD-40 (s)",
        "x ReLU",
        "largest error of y",
    ]
    return table(head, rows)


def _attacks() -> str:
    rows = []
    for attack, methods in _result("attacks")["jobs"].items():
        own = methods.get("odejax, vmap", methods["odejax, robust_accuracy"])["seconds"]
        for name, measured in methods.items():
            seconds, accuracy = measured["seconds"], measured["robust_accuracy"]
            bare = f"{measured['x_limit']:.2f}" if "x_limit" in measured else ""
            row = [
                attack,
                name,
                f"{seconds:.2f}",
                f"{seconds / own:.2f}",
                bare,
                f"{100 * accuracy:.1f}",
            ]
            rows.append(row)
    head = [
        "attack",
        "library",
        "time (s)",
        "x odejax",
        "x bare evaluations",
        "robust accuracy (%)",
    ]
    return table(head, rows)


def _bounds() -> str:
    rows = []
    for name, job in _result("bounds")["jobs"].items():
        for how, milliseconds in job["milliseconds"].items():
            shown = f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:,.0f}"
            rows.append([name, f"{job['neurons']:,}", how, shown, f"{job['compile_seconds']:.0f}"])
    return table(["network", "neurons", "library", "an image (ms)", "compiling (s)"], rows)


def _training() -> str:
    result = _result("training")
    seconds, compiling = result["seconds"], result["compile_seconds"]
    rows = [[name, f"{value:.2f}"] for name, value in seconds.items()]
    rows += [[f"compiling {name}", f"{value:.2f}"] for name, value in compiling.items()]
    return table(["", "time (s)"], rows)


def _certified() -> str:
    rows = []
    for name, seconds in _result("certified")["seconds"].items():
        plain = seconds["plain"]
        times = (f"{1000 * s:,.0f} ({s / plain:.1f})" for s in seconds.values())
        rows.append([name, *times])
    head = next(iter(_result("certified")["seconds"].values()))
    return table(["network", *(f"{of} (ms)" for of in head)], rows)


def _convolution() -> str:
    layers = _result("convolution")["layers"]
    head = [
        "",
        *(f"{one['channels']} channels, {one['pixels']} x {one['pixels']}" for one in layers),
    ]
    names = layers[0]["seconds"]
    return table(head, ([n, *(f"{1000 * one['seconds'][n]:.1f}" for one in layers)] for n in names))


def _neural_ode() -> str:
    rows = [
        [
            name,
            job["evaluations"],
            f"{1000 * job['evaluation_seconds']:.1f}",
            f"{job['forward_seconds']:.2f}",
            f"{job['gradient_seconds']:.2f}",
            f"{job['held_bytes'] / 2**20:.0f}",
        ]
        for name, job in _result("neural_ode")["jobs"].items()
    ]
    head = ["", "evaluations", "one (ms)", "forward (s)", "gradient (s)", "memory held (MiB)"]
    return table(head, rows)


def _lipschitz() -> str:
    seconds = _result("lipschitz")["seconds"]
    rows = []
    for name, with_bound in seconds.items():
        if not name.endswith(", frozen"):
            frozen = seconds[f"{name}, frozen"]
            row = [
                name,
                f"{1000 * with_bound:.0f}",
                f"{1000 * frozen:.0f}",
                f"{with_bound / frozen:.2f}",
            ]
            rows.append(row)
    return table(["network", "with the bound (ms)", "weights frozen (ms)", "ratio"], rows)


PARTS: dict[str, Callable[[], str]] = {
    "flags_of_the_network": lambda: _flags_of(masking_flags),
    "flags_of_the_solver": lambda: _flags_of(solver_flags),
    "flags_of_stronger_attacks": lambda: _flags_of(attack_flags),
    "flags_of_attacks": lambda: _flags_of(None),
    **{
        f"ledger_{p}": lambda p=p: _ledger(p)
        for p in ("natural", "nmode", "enresnet", "structured")
    },
    "benchmark_nmode": _nmode,
    "benchmark_certified": _certified,
    "benchmark_attacks": _attacks,
    "benchmark_bounds": _bounds,
    "benchmark_training": _training,
    "benchmark_convolution": _convolution,
    "benchmark_neural_ode": _neural_ode,
    "benchmark_lipschitz": _lipschitz,
}

if __name__ == "__main__":
    for path in DOCS.rglob("*.md"):
        if (new := generated(path)) != path.read_text():
            path.write_text(new)
            print(f"{path.relative_to(ROOT)} written")
