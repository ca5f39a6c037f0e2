"""Neural networks that are discretised differential equations, and how robust they are.

Examples in docstrings need these imports:

    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import odejax
"""

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
