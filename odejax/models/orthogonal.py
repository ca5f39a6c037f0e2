"""The orthogonal network: nothing but lengths is kept, from the pixels to the last features."""

import itertools
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp

from .._checks import check_count
from .._types import Key
from .blocks import ImageShape, check_image_shape
from .lipschitz import AbstractLipschitzNet
from .lipschitz_layers import Affine, Flatten, MinMax, Sequential
from .operators import OrthogonalOperator, UnitRows


class OrthogonalNet(AbstractLipschitzNet):
    """A fully connected network of orthogonal matrices, whose l2 Lipschitz constant is proven.

        h_{l+1} = minmax(W_l h_l + b_l), W_l W_l^T = I;  z = A h + c, the rows of A of length 1

    It keeps the length of a gradient on its way back, from the last features to the pixels, which
    gradient flows and ReLU do not. Train it with `RadiusCrossEntropy`.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `widths`: units of each hidden layer, even numbers ((512, 512, 512)).

    Raises `ValueError` for odd widths, and sizes that are no counts.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.OrthogonalNet)
        ...     model, state = make((8, 8, 1), widths=(32, 32), key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Anil, Lucas and Grosse (2019), arXiv:1811.05381, for orthogonal matrices and min and max; Hu et
    al. (2024), arXiv:2310.02513, for the matrices by Cholesky's factor; Singla et al. (2022),
    arXiv:2108.04062, for the head.
    """

    layers: Sequential
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        widths: Sequence[int] = (512, 512, 512),
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(**{f"widths[{i}]": width for i, width in enumerate(widths)})
        if odd := [width for width in widths if width % 2]:
            raise ValueError(f"widths must be even, for pairs of units; got {odd[0]}")
        sizes = [math.prod(self.image_shape), *widths]
        *keys, head_key = jax.random.split(key, len(widths) + 1)
        orthogonal = jax.nn.initializers.orthogonal()
        layers = [Flatten()]
        for (before, after), layer_key in zip(itertools.pairwise(sizes), keys, strict=True):
            operator = OrthogonalOperator(orthogonal(layer_key, (after, before)))
            layers += [Affine(operator, jnp.zeros(after)), MinMax()]
        head = UnitRows(jax.random.normal(head_key, (n_classes, sizes[-1])))
        self.layers = Sequential((*layers, Affine(head, jnp.zeros(n_classes))))
