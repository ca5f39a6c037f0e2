"""Results as a notebook shows them: a title, a table, notes."""

import abc
import html
import textwrap

_WIDTH = 100  # of tables and notes in a terminal


class Shown(abc.ABC):
    """What has a `table()` is shown as one, in a terminal and in a notebook.

    `table()` returns a title, the head of the columns, the rows, and notes below them.
    """

    @abc.abstractmethod
    def table(self) -> tuple[str, list[str], list[list[str]], list[str]]:
        """The title, the head, the rows and the notes."""

    def __repr__(self) -> str:
        title, head, rows, notes = self.table()
        lines = [head, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

        def line(cells, columns):
            others = [cells[i].rjust(widths[i]) for i in columns]
            return "  ".join(["", cells[0].ljust(widths[0]), *others]).rstrip()

        wrapped = [
            piece
            for note in notes
            for piece in textwrap.wrap(
                note, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
        ]
        table = [line(cells, columns) for columns in _blocks(widths) for cells in lines]
        return "\n".join([title, *table, *wrapped])

    def _repr_html_(self) -> str:
        title, head, rows, notes = self.table()

        def row(cells, tag):
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = row(head, "th") + "".join(row(cells, "td") for cells in rows)
        below = "".join(f"<div>{html.escape(note)}</div>" for note in notes)
        return f"<div><b>{html.escape(title)}</b></div><table>{body}</table>{below}"


def _blocks(widths: list[int]) -> list[list[int]]:
    """The columns after the first, in blocks that each fit beside it into a terminal."""
    blocks: list[list[int]] = [[]]
    for i in range(1, len(widths)):
        beside = sum(2 + widths[j] for j in [0, *blocks[-1]])
        if blocks[-1] and beside + 2 + widths[i] > _WIDTH:
            blocks.append([])
        blocks[-1].append(i)
    return blocks
