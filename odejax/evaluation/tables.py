"""Results as a notebook shows them: a title, a table, notes."""

import abc
import html
import textwrap

_WIDTH = 100  # of the notes in a terminal


class Shown(abc.ABC):
    """What has a `table()` is shown as one, in a terminal and in a notebook.

    `table()` returns a title, the head of the columns, the rows, and notes below them.
    """

    @abc.abstractmethod
    def table(self) -> tuple[str, list[str], list[list[str]], list[str]]:
        """The title, the head, the rows and the notes."""

    def __repr__(self) -> str:
        title, head, rows, notes = self.table()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

        def line(cells):
            first, *others = widths
            others = [cell.rjust(w) for cell, w in zip(cells[1:], others, strict=True)]
            return "  ".join(["", cells[0].ljust(first), *others]).rstrip()

        wrapped = [
            piece
            for note in notes
            for piece in textwrap.wrap(
                note, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
        ]
        return "\n".join([title, line(head), *map(line, rows), *wrapped])

    def _repr_html_(self) -> str:
        title, head, rows, notes = self.table()

        def row(cells, tag):
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = row(head, "th") + "".join(row(cells, "td") for cells in rows)
        below = "".join(f"<div>{html.escape(note)}</div>" for note in notes)
        return f"<div><b>{html.escape(title)}</b></div><table>{body}</table>{below}"
