"""Whether every link, anchor and image of the built site exists. Zensical looks at pages alone.

python -m docs_tools.check_site [FOLDER]
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

SITE = Path(__file__).parents[1] / "site"
_BASE = "https://site/"


class _Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        wanted = {"a": "href", "img": "src", "link": "href", "script": "src"}.get(tag)
        if wanted and (link := values.get(wanted)):
            self.links.append(link)


def broken_links(site: Path = SITE) -> list[str]:
    """One sentence for each link within the site that leads nowhere."""
    pages = {path: _Page(path.read_text()) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # shown at any depth: its links are the site's own
            continue
        here = urljoin(_BASE, path.relative_to(site).as_posix())
        for link in page.links:
            url = urlparse(urljoin(here, link))
            if url.netloc != "site":
                continue
            target = site / unquote(url.path).lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            where = f"{path.relative_to(site)}: {link}"
            if not target.exists():
                broken.append(f"{where} does not exist")
            elif url.fragment and unquote(url.fragment) not in pages[target].anchors | {"__top"}:
                broken.append(f"{where} has no such anchor")
    return broken


if __name__ == "__main__":
    broken = broken_links(*map(Path, sys.argv[1:]))
    print("\n".join(broken) or "every link leads somewhere")
    sys.exit(bool(broken))
