"""Normalisation of the pixels as the first layer of a network."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from .._checks import check_finite
from .._types import Features, Image, Key, Logits


class Normalised(eqx.Module):
    """A network of normalised pixels, as a network of pixels in [0, 1].

        logits = model((x - mean) / std)

    Attacks, certificates and augmentation see x alone, so the radius of a ball stays in pixels,
    whatever mean and std are. These are settings, no weights: training does not move them. Bound
    propagation goes through the normalisation. Certificates that look into one kind of model
    (`LipschitzMargin`, those of nmODE) do not.

    - `model`: any network, called as `model(x, state, key=key)`.
    - `mean`, `std`: one for each channel, or one for all, in pixels of [0, 1].

    Raises `ValueError` for a std that is not positive, a mean outside [0, 1], and other numbers of
    channels than the image has.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> net, state = eqx.nn.make_with_state(odejax.models.MLP)((4, 4, 3), key=jax.random.key(0))
        >>> model = odejax.models.Normalised(net, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
        >>> model(jnp.full((4, 4, 3), 0.5), state)[0].shape
        (10,)

    LeCun, Bottou, Orr and Müller (1998), *Efficient BackProp*, Section 4.3.
    """

    model: Callable[..., Any]
    mean: tuple[float, ...] = eqx.field(static=True)
    std: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        model: Callable[..., Any],
        mean: ArrayLike | Sequence[float],
        std: ArrayLike | Sequence[float],
    ):
        check_finite(mean=mean, std=std)
        self.model = model
        self.mean, self.std = (tuple(np.ravel(np.asarray(v, float)).tolist()) for v in (mean, std))
        if not all(0 <= m <= 1 for m in self.mean):
            raise ValueError(f"mean must lie in [0, 1], in which the pixels lie; got {mean}")
        if not all(s > 0 for s in self.std):
            raise ValueError(f"std must be positive; got {std}")
        if (shape := getattr(model, "image_shape", None)) is not None:
            self._check_channels(shape[-1])

    def _check_channels(self, channels: int):
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise ValueError(
                    f"{name} must have one value, or {channels}, as the images have channels; "
                    f"got {len(values)}"
                )

    def normalise(self, x: Image) -> Features:
        """(x - mean) / std."""
        self._check_channels(x.shape[-1])
        return (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.std, x.dtype)

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        return self.model(self.normalise(x), state, key=key)

    # What others ask of a model. Each is there if the model has it.

    @property
    def image_shape(self):
        return self.model.image_shape  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def ode(self):
        """That of a neural ODE, for the flags of its solver."""
        return self.model.ode  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def solve(self):
        inner = self.model.solve  # pyright: ignore[reportFunctionMemberAccess]
        return lambda x, state: inner(self.normalise(x), state)

    @property
    def with_solution(self):
        inner = self.model.with_solution  # pyright: ignore[reportFunctionMemberAccess]
        return lambda x, state: inner(self.normalise(x), state)
