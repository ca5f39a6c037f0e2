"""Neural networks that are discretised differential equations, and how robust they are.

Examples in docstrings need these imports:

    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import odejax
"""

import sys as _sys
from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from ._black_box import BlackBox as BlackBox
from ._ensembles import EnsembleLogits as EnsembleLogits, MeanLogits as MeanLogits
from ._mesh import batch_mesh as batch_mesh
from ._network_file import load as load, save as save
from ._predictor import Predictor as Predictor, predict as predict
from ._smoothing import Smoothed as Smoothed
from ._threat_model import AbstractBall as AbstractBall, L2Ball as L2Ball, LinfBall as LinfBall
from ._types import (
    Image as Image,
    Label as Label,
    Logits as Logits,
    LogitsFn as LogitsFn,
)
from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import (
        attacks as attacks,
        certificates as certificates,
        data as data,
        evaluation as evaluation,
        models as models,
        plots as plots,
        solvers as solvers,
        training as training,
    )

_PACKAGES = (
    "attacks",
    "certificates",
    "data",
    "evaluation",
    "models",
    "plots",
    "solvers",
    "training",
)


def __getattr__(name: str):
    # A package is imported when it is first used: whoever attacks a network waits for no solver,
    # and whoever draws nothing for no Matplotlib.
    if name in _PACKAGES:
        return _import_module(f"{__name__}.{name}")
    # With the name and the module Python suggests a name that is alike.
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message, name=name, obj=_sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES})
