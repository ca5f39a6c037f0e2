"""The page as one HTML text: the template, with styles, scripts and data in their places."""

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
# In this order: each uses those before it.
SCRIPTS = (
    *("dom", "address", "interval", "table"),
    *("leaderboard", "ledger", "curves", "images", "experiments"),
    "page",
)


def render(content: dict[str, Any]) -> str:
    parts = {
        "style": (FOLDER / "page.css").read_text(),
        "script": "\n".join((FOLDER / "js" / f"{name}.js").read_text() for name in SCRIPTS),
        "data": embedded(content),
        "attacked": content["colors"]["attacked"],
        "certified": content["colors"]["certified"],
    }
    template = (FOLDER / "template.html").read_text()
    # In one go: what is put in is not looked through again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def embedded(content: Any) -> str:
    """JSON that can stand inside <script>: nothing in it ends the element or begins a comment."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
