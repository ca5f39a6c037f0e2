"""The result of an evaluation as one page of HTML that needs nothing else."""

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import odejax

from .._paths import written_whole
from .._words import counted
from ..data import ArrayDataset
from ..evaluation import FLAGS, Bracket, Brackets, confidence_interval
from ..evaluation.flags import flags_seen
from ..evaluation.intervals import percent
from ..plots import robustness_curves
from ..plots.palette import ATTACKED, CERTIFIED
from ..plots.pictures import example

NORMS = {"linf": "L-infinity", "l2": "l2"}
STYLE = """
:root { color-scheme: light dark; --band: light-dark(#e0e0e0, #45484e);
  --attacked: light-dark(#b2182b, #ff8a78); --certified: light-dark(#2166ac, #7db8f5); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1, dd { overflow-wrap: anywhere; }
.scrolls { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .3rem 1.2rem .3rem 0; text-align: right; border-bottom: 1px solid #8884;
  vertical-align: top; font-weight: normal; white-space: nowrap; }
th:first-child { text-align: left; min-width: 7.5rem; white-space: normal;
  position: sticky; left: 0; background: Canvas; }
tr > :last-child { padding-right: 0; }
thead th, .end > * { font-weight: 600; }
small { display: block; font-weight: normal; opacity: .7; }
img { max-width: 100%; }
.curve { display: block; width: 100%; max-width: 32rem; height: auto; fill: currentColor; }
.note { font-size: .85rem; line-height: 1.4; max-width: 40rem; }
.examples { display: grid; grid-template-columns: repeat(3, 1fr); gap: .75rem; }
@media (min-width: 45rem) { .examples { grid-template-columns: repeat(6, 1fr); } }
@media (max-width: 30rem) { th, td { padding-right: .7rem; } }
figure { margin: 0; }
figure img { display: block; width: 100%; image-rendering: pixelated; }
figcaption { font-size: .85rem; line-height: 1.3; margin-top: .2rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem .8rem; background: #8882; }
dt { font-weight: 600; }
dd { margin: 0 0 .6rem 1rem; }
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
    parts = [f"<h1>How robust is {html.escape(name)}?</h1>"]
    parts.append(_sentence(brackets, result.get("clean", 0.0), of, len(data)))
    parts += [_table(several) for several in measured]
    if brackets:
        parts += ["<h2>True robust accuracy lies in the band</h2>", _curves(brackets)]
        parts += _examples(brackets[-1], data)
        parts += _flags(brackets)
    images = f"{result['images']}; {data.provenance()['source']}"
    rows = {"images": images, "settings": result["settings"]}
    rows |= {key: result[key] for key in ("commit", "device", "processor", "time", "versions")}
    parts.append("<h2>How it was measured</h2>")
    parts.append(f"<pre>{html.escape(result['command'])}</pre>")
    parts.append(f"<dl>{_listed(rows)}</dl>")
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(name)}</title><style>{STYLE}</style>"
        f"<main>{''.join(parts)}</main></html>\n"
    )
    with written_whole(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sentence(brackets: list[Bracket], clean: float, of: str, n: int) -> str:
    if not brackets:
        low, high = confidence_interval(round(clean * n), n)
        return (
            f"<p>Clean accuracy on {of} is <b>{percent(clean)} %</b> (95 % confidence interval "
            f"{percent(low)} to {percent(high)} %). Nothing else was measured.</p>"
        )
    first = brackets[0]
    low, high = (f"<b>{percent(end)} %</b>" for end in (first.certified, first.attacked))
    certain = first.per_certificate and not first.alpha
    attacked = first.per_attack or first.per_transfer or first.last
    proven, reached = "which is proven", "which no attack got below"
    if not certain:
        proven = "since no certificate was run"
    if first.alpha:
        proven = "which is certified with the confidence below the table"
    if not attacked:
        reached = "the clean accuracy, since no attack was run"
    between = f"between {low}, {proven}, and {high}, {reached}"
    if first.certified == first.attacked and certain and attacked:
        between = f"{low}: so much is proven, and attacks got down to it"
    within = f"Within {NORMS[first.ball]} {first.eps:.3g}"
    return f"<p>{within}, true robust accuracy on {of} is {between}.</p>"


def _table(several: Brackets) -> str:
    """Both ends at every eps with their sampling error, and what is behind them."""
    first, unproven = several[0], not several[0].per_certificate
    rows = [_row("clean", [_cell(one, one.clean) for one in several])]
    for entries in zip(*(one.behind_attacked() for one in several), strict=True):
        cells = [_cell(b, e.accuracy, e.n_run) for b, e in zip(several, entries, strict=True)]
        rows.append(_row(entries[0].label, cells))
    attacked = [_cell(one, one.attacked) for one in several]
    rows.append(_row("attacked: correct under all of them", attacked, "end"))
    for entries in zip(*(one.behind_certified() for one in several), strict=True):
        cells = [_cell(b, e.accuracy) for b, e in zip(several, entries, strict=True)]
        rows.append(_row(entries[0].label, cells))
    certified = ["none" if unproven else _cell(one, one.certified) for one in several]
    rows.append(_row("certified: proven by any of them", certified, "end"))
    radii = "".join(f"<th>{one.eps:.3g}</th>" for one in several)
    caption = f"Accuracy in %, {counted(first.n, 'image')}"
    below = several.clean_notes() + several.certificate_notes()
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in below)
    return (
        f'<div class="scrolls" tabindex="0"><table><caption>{caption}</caption>'
        f"<thead><tr><th>{NORMS[first.ball]} eps</th>{radii}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        "<p><small>Below each accuracy: its 95 % confidence interval (Clopper-Pearson), as the "
        f"{first.n} images are a sample of all such images.</small></p>{notes}"
    )


def _row(label: str, cells: list[str], kind: str = "") -> str:
    cells = [f"<th>{html.escape(label)}</th>", *(f"<td>{cell}</td>" for cell in cells)]
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _cell(of: Bracket, accuracy: float, n_run: int | None = None) -> str:
    low, high = map(percent, of.interval(accuracy))
    on = "" if n_run is None else f"<small>run on {n_run}</small>"
    return f"{percent(accuracy)}<small>{low} to {high}</small>{on}"


def _examples(bracket: Bracket, data: ArrayDataset) -> list[str]:
    """A few images that an attack changed the class of, and what they became."""
    broken = np.flatnonzero((bracket.x_adv != data.pixels).any(axis=(1, 2, 3)))[:4]
    if not len(broken):
        return []
    logits = odejax.predict(bracket.judge, bracket.x_adv[broken], key=jax.random.key(0))
    figures = []
    for i, prediction in zip(broken, logits.argmax(axis=1), strict=True):
        shown = example(data.pixels[i], bracket.x_adv[i], int(data.labels[i]), int(prediction))
        figures += [
            _picture("image", shown["image"], f"class {shown['label']}"),
            _picture("perturbation", shown["change"], f"±{shown['largest']:.2f}"),
            _picture("adversarial example", shown["x_adv"], f"now class {shown['prediction']}"),
        ]
    within = f"{NORMS[bracket.ball]} {bracket.eps:.3g}"
    return [
        f"<h2>Adversarial examples within {within}</h2><p>The image, what an attack adds "
        f"(red: brighter, blue: darker), and the sum.</p>"
        f'<div class="examples">{"".join(figures)}</div>'
    ]


def _picture(what: str, uri: str, caption: str) -> str:
    return f'<figure><img alt="{what}" src="{uri}"><figcaption>{caption}</figcaption></figure>'


def _flags(brackets: list[Bracket]) -> list[str]:
    checked = list(dict.fromkeys(name for one in brackets for name in one.flags_checked))
    raised = flags_seen((NORMS[b.ball], b.eps, b.flags) for b in brackets)
    if not raised:
        were = "was" if len(checked) == 1 else "were"
        return [
            "<h2>Is the upper end too high?</h2>"
            f"<p>No flag was raised; {len(checked)} {were} checked: {', '.join(checked)}.</p>"
        ]
    rows = {
        name: f"{seen}. {FLAGS[name].why}: {FLAGS[name].what_to_do}."
        for name, seen in raised.items()
    }
    return [
        "<h2>Why the upper end may still be too high</h2>"
        f"<p>{len(rows)} of {len(checked)} flags that were checked are raised.</p>"
        f"<dl>{_listed(rows)}</dl>"
    ]


def _listed(rows: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, dict):
            given = {key: one for key, one in value.items() if one not in (None, ())}
            return ", ".join(f"{key} {_plain(one)}" for key, one in given.items())
        return _plain(value)

    return "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(shown(value))}</dd>"
        for name, value in rows.items()
        if value is not None
    )


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _curves(brackets: list[Bracket]) -> str:
    """The interval against eps, in the colours of the page, light or dark."""
    figure = robustness_curves({"": brackets}, title="")
    figure.set_size_inches(4.2, figure.get_figheight())
    content = io.StringIO()
    # The same brackets make the same text.
    with mpl.rc_context({"svg.hashsalt": "odejax"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    # Inside HTML neither a header, nor name spaces, nor metadata.
    drawn = content.getvalue().replace("xlink:href", "href")
    drawn = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawn)
    named = {"#000000": "currentColor", "#e0e0e0": "var(--band)"}
    named |= {ATTACKED: "var(--attacked)", CERTIFIED: "var(--certified)"}
    for color, name in named.items():
        drawn = drawn.replace(color, name)
    alternative = "Certified and attacked accuracy against eps; the numbers are in the table"
    drawn = drawn.replace("<svg", f'<svg class="curve" role="img" aria-label="{alternative}"', 1)
    return (
        f'{drawn}<p class="note">Attacks were run at the dots alone; at eps 0 the dot is the clean '
        "accuracy. An attack that succeeds within eps succeeds within any larger eps: each dot is "
        "an upper bound up to the next one. A proof within eps holds within any smaller eps.</p>"
    )
