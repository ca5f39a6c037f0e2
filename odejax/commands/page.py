"""The result of an evaluation as one page of HTML that needs nothing else."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import odejax

from .._paths import written_whole
from ..data import ArrayDataset
from ..evaluation import FLAGS, Bracket, Brackets
from ..plots import perturbation_grid, robustness_curves

NORMS = {"linf": "L-infinity", "l2": "l2"}
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; background: white; }
dt { font-weight: 600; }
code { overflow-wrap: anywhere; }
""".strip()


def page(
    file: Path,
    name: str,
    measured: Sequence[Brackets],
    data: ArrayDataset,
    result: dict[str, Any],
):
    """Write it: the tables, the curve, adversarial examples, the flags, and how to repeat it."""
    brackets = [bracket for several in measured for bracket in several]
    of = html.escape(result["images"])
    parts = [f"<h1>How robust is {html.escape(name)}?</h1>", _sentence(brackets, of)]
    parts += [several._repr_html_() for several in measured]
    if brackets:
        figure = robustness_curves(
            {name: brackets}, title="What is proven, and what no attack got below"
        )
        parts.append(_image(figure, "certified and attacked accuracy against eps"))
        parts += _examples(name, brackets[-1], data)
    parts += _flags(brackets)
    images = f"{result['images']}; {data.provenance()['source']}"
    rows = {"images": images, "settings": result["settings"]}
    rows |= {key: result[key] for key in ("commit", "device", "processor", "time", "versions")}
    parts.append(f"<h2>How it was measured</h2><dl>{_listed(rows)}</dl>")
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(name)}</title><style>{STYLE}</style>"
        f"<main>{''.join(parts)}</main></html>\n"
    )
    with written_whole(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sentence(brackets: list[Bracket], of: str) -> str:
    if not brackets:
        return f"<p>Clean accuracy alone was measured, on {of}.</p>"
    first = brackets[0]
    low, high = (f"<b>{100 * end:.1f} %</b>" for end in (first.certified, first.attacked))
    between = f"between {low}, which is proven, and {high}, which no attack got below"
    if first.certified == first.attacked:
        between = f"{low}: so much is proven, and attacks got down to it"
    within = f"Within {NORMS[first.ball]} {first.eps:.3g}"
    return f"<p>{within}, true robust accuracy on {of} is {between}.</p>"


def _examples(name: str, bracket: Bracket, data: ArrayDataset) -> list[str]:
    """A few images that an attack changed the class of, and what they became."""
    broken = np.flatnonzero((bracket.x_adv != data.pixels).any(axis=(1, 2, 3)))[:4]
    if not len(broken):
        return []
    logits = odejax.predict(bracket.judge, bracket.x_adv[broken], key=jax.random.key(0))
    shown = {
        "images": data.pixels[broken],
        "x_adv": bracket.x_adv[broken],
        "labels": data.labels[broken],
        "predictions": logits.argmax(axis=1),
    }
    title = f"Adversarial examples within {NORMS[bracket.ball]} {bracket.eps:.3g}"
    figure = perturbation_grid({name: shown}, title=title, examples_shown=len(broken))
    return [_image(figure, "images, perturbations and adversarial examples")]


def _flags(brackets: list[Bracket]) -> list[str]:
    raised = {flag.name: flag.evidence for bracket in brackets for flag in bracket.flags}
    if not raised:
        return []
    rows = {
        name: f"{evidence}. {FLAGS[name].why}: {FLAGS[name].what_to_do}."
        for name, evidence in raised.items()
    }
    return [f"<h2>Why the upper end may still be too high</h2><dl>{_listed(rows)}</dl>"]


def _listed(rows: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, dict):
            given = {key: one for key, one in value.items() if one not in (None, ())}
            return ", ".join(f"{key} {_plain(one)}" for key, one in given.items())
        return _plain(value)

    return "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(shown(value))}</dd>"
        for name, value in rows.items()
    )


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _image(figure: Any, alternative: str) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    plt.close(figure)
    encoded = base64.b64encode(content.getvalue()).decode()
    return f'<p><img alt="{alternative}" src="data:image/png;base64,{encoded}"></p>'
