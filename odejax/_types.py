"""The array aliases and the one protocol that the whole library shares."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Image = Float[Array, "h w c"]
"""One image, channels last, pixels in [0, 1]."""
Features = Float[Array, "h2 w2 c2"]  # a feature map, of any size
Images = Float[Array, "n h w c"]  # a batch of them
Label = Int[Array, ""]
"""The class of one image, from 0."""
Labels = Int[Array, " n"]
Logits = Float[Array, "k"]
"""The scores of the k classes of one image, before the softmax."""
BatchLogits = Float[Array, "n k"]
Scalar = Float[Array, ""]
BoolScalar = Bool[Array, ""]
Key = PRNGKeyArray


@runtime_checkable
class LogitsFn(Protocol):
    """One image to its logits. Deterministic models ignore `key`."""

    def __call__(self, x: Image, /, *, key: Key) -> Logits: ...


BATCH_AXIS = "batch"  # the name of the vmap axis that batch statistics are taken over
