"""What axes and titles say: norm and unit, plain numbers, nothing cut off."""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

AXIS_LABELS = {
    "linf": r"$\epsilon$  ($\ell_\infty$, pixels in [0, 1])",
    "l2": r"$\epsilon$  ($\ell_2$, pixels in [0, 1])",
}
"""The label of an axis of eps, by the norm of the ball."""


def plain_ticks(axis: Axes):
    """Write the tick labels of both axes as plain numbers (4, not 4 x 10^0), of log axes too.

    - `axis`: after its scales are set, since these set their own labels. On a log axis only the
      major ticks have labels.

    >>> import matplotlib.pyplot as plt
    >>> from odejax.plots import plain_ticks
    >>> figure, axis = plt.subplots()
    >>> lines = axis.loglog([1, 10], [0.1, 1])
    >>> plain_ticks(axis)
    >>> axis.xaxis.get_major_formatter()(10)
    '10'
    >>> plt.close(figure)
    """
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter("{x:g}")
        if one.get_scale() != "linear":
            one.set_minor_formatter(NullFormatter())


def set_title(figure: Figure, title: str, size: float | int = 11):
    r"""Put a title above all panels, in as many lines as the figure's width asks for.

    - `figure`: of its final width, with the constrained layout, which makes room for the lines.
    - `title`: the finding, as a sentence.
    - `size`: of the font, in points.

    >>> import matplotlib.pyplot as plt
    >>> figure = plt.figure(figsize=(2, 2), layout="constrained")
    >>> odejax.plots.set_title(figure, "No step size makes a ResNet robust")
    >>> figure.get_suptitle().count("\n")
    1
    >>> plt.close(figure)
    """
    a_line = int(72 * figure.get_figwidth() / (0.58 * size))  # letters of the mean width
    figure.suptitle("\n".join(textwrap.wrap(title, max(a_line, 10))), fontsize=size)
