"""The convolution that every image model uses: channels-last, and as fast inside a loop as out.

XLA's CPU backend loses its fast convolution kernels for the gradients of a convolution inside
a loop body (jax-ml/jax issue 12868), and epochs, attacks, layered nets and ODE solves are
loops. The cure is to choose what the gradients are made of: on the CPU

- the input gradient is an ordinary stride-1 convolution of the cotangent with the flipped,
  transposed kernel (its taps regrouped where the stride is larger), and
- the kernel gradient is one of the image with the cotangent, both transposed, over the examples.

(And images of one channel are convolved tap by tap, which is several times faster there.)

A primitive of its own, rather than `jax.custom_vjp`, keeps both orders of composition right:
under `vmap` the batch is folded into the convolution's batch dimension *before* the gradient
rule is chosen, so a shared kernel's gradient is one contraction over the batch, never one
kernel-sized array per example. It also keeps forward mode and every higher order.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from .._checks import check_count
from .._promotion import own_promotion

Padding = tuple[tuple[int, int], tuple[int, int]]
_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")


def conv2d(
    x: Float[Array, "h w i"],
    kernel: Float[Array, "kh kw i o"],
    *,
    stride: int = 1,
    padding: int | Padding = 0,
) -> Float[Array, "h2 w2 o"]:
    """One image cross-correlated with a kernel, (h2, w2, o).

        out[p, q] = sum_ab x[s p + a, s q + b] kernel[a, b]

    Batch with `jax.vmap`. Differentiable to every order in both modes.

    - `x`: (h, w, i).
    - `kernel`: (kh, kw, i, o).
    - `stride`: s, in pixels (1).
    - `padding`: zeros around, the same on all sides if an int (0), else ((top, bottom), (left,
      right)).

    Raises `ValueError` when the shapes do not fit together, or for a stride below 1.

        >>> import jax.numpy as jnp, odejax
        >>> x, kernel = jnp.ones((3, 3, 1)), jnp.ones((2, 2, 1, 1))
        >>> odejax.models.conv2d(x, kernel, stride=2, padding=1)[..., 0].tolist()
        [[1.0, 2.0], [2.0, 4.0]]

    The loss of speed that it avoids is described in the issue 12868 of jax-ml/jax on GitHub.
    """
    check_count(stride=stride)
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    if x.ndim != 3 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"conv2d takes an image (h, w, i) and a kernel (kh, kw, i, o); "
            f"got {x.shape} and {kernel.shape}"
        )
    size = [n + sum(p) - k for n, p, k in zip(x.shape, padding, kernel.shape, strict=False)]
    if min(size[:2]) < 0:
        raise ValueError(
            f"the kernel {kernel.shape[:2]} is larger than the padded image: "
            f"{x.shape[:2]} with padding {padding}"
        )
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    # Captured here: the primitive is lowered after any `default_matmul_precision` block has ended.
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    out = _conv_p.bind(x[None], kernel, stride=stride, padding=padding, precision=precision)
    return out[0]


@own_promotion
def _plain(x, kernel, *, stride, padding, precision):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_DIMENSION_NUMBERS,
        precision=precision,
    )  # fmt: skip


@own_promotion
def _plain_on_cpu(x, kernel, *, stride, padding, precision):
    """A sum over taps for images of one channel, where XLA's own kernels are slow."""
    if kernel.shape[2] > 1:
        return _plain(x, kernel, stride=stride, padding=padding, precision=precision)
    kh, kw = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    h, w = ((n - k) // stride * stride + 1 for n, k in zip(x.shape[1:3], (kh, kw), strict=True))
    return sum(
        x[:, a : a + h : stride, b : b + w : stride] * kernel[a, b, 0]
        for a in range(kh)
        for b in range(kw)
    )


def _conv(x, kernel, **params):
    return _conv_p.bind(x, kernel, **params)


def _input_gradient_on_cpu(g, x, kernel, *, stride, padding, precision):
    """One stride-1 convolution of the cotangent for all residues of the pixels modulo the stride.

    Pixel v = s q + r of the padded image took part in out[p] through tap a = v - s p = s m + r with
    m = q - p, so its gradient is sum_m g[q - m] kernel[s m + r]: s x s kernels of ceil(k / s)
    taps, whose outputs are interleaved.
    """
    (kh, kw, i, o), (n, h, w, _) = kernel.shape, g.shape
    rows, columns = -(-kh // stride), -(-kw // stride)
    taps = jnp.pad(kernel, ((0, rows * stride - kh), (0, columns * stride - kw), (0, 0), (0, 0)))
    taps = taps.reshape(rows, stride, columns, stride, i, o)[::-1, :, ::-1]
    taps = taps.transpose(0, 2, 5, 1, 3, 4).reshape(rows, columns, o, stride * stride * i)
    # Output size = padded input size; negative padding on the far side is a crop.
    sizes = [-(-(size + sum(p)) // stride) for size, p in zip(x.shape[1:3], padding, strict=True)]
    full = ((rows - 1, sizes[0] - h), (columns - 1, sizes[1] - w))
    out = _conv(g, taps, stride=1, padding=full, precision=precision)
    out = out.reshape(n, *sizes, stride, stride, i).transpose(0, 1, 3, 2, 4, 5)
    out = out.reshape(n, sizes[0] * stride, sizes[1] * stride, i)
    (top, _), (left, _) = padding
    return out[:, top : top + x.shape[1], left : left + x.shape[2]]


def _kernel_gradient_on_cpu(g, x, kernel, *, stride, padding, precision):
    """One stride-1 convolution in which examples are channels, and channels examples.

    kernel[a, b, i, o] gathers x[n, s p + a, s q + b, i] g[n, p, q, o] over n, p, q: the image, of
    which each channel is an example, is convolved with the cotangent, whose taps are s apart.
    """
    size, taps = kernel.shape[:2], g.shape[1:3]
    if size == (1, 1) and stride > 1:  # most pixels meet no tap
        edges = [
            (before, (n - 1) * stride + 1 - before - length, 0)
            for (before, _), n, length in zip(padding, taps, x.shape[1:3], strict=True)
        ]
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
        x, padding, stride = x[:, ::stride, ::stride], ((0, 0), (0, 0)), 1
    # Negative padding on the far side is a crop.
    edges = [
        (before, (n - 1) * stride + k - before - length)
        for (before, _), n, k, length in zip(padding, taps, size, x.shape[1:3], strict=True)
    ]
    if any(n > length for n, length in zip(taps, x.shape[1:3], strict=True)):
        # XLA would exchange image and cotangent, for which it has no fast kernel.
        pad = (0, 0, 0), *((*edge, 0) for edge in edges), (0, 0, 0)
        x = lax.pad(x, jnp.zeros((), x.dtype), pad)
        edges = [(0, 0), (0, 0)]
    # Transposed here: inside a loop XLA's fast kernels support no other layout.
    out = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), edges,
        rhs_dilation=(stride, stride), dimension_numbers=_DIMENSION_NUMBERS, precision=precision,
    )  # fmt: skip
    return out.transpose(1, 2, 0, 3)


def _input_gradient(g, x, kernel, **params):
    x = x.aval  # linear in x: only its shape is known here

    def plain(g, kernel):
        (out,) = jax.linear_transpose(lambda v: _plain(v, kernel, **params), x)(g)
        return out

    cpu = partial(_input_gradient_on_cpu, x=x, **params)
    return lax.platform_dependent(
        g, kernel, cpu=lambda g, kernel: cpu(g, kernel=kernel), default=plain
    )


def _kernel_gradient(g, x, kernel, **params):
    kernel = kernel.aval

    def plain(g, x):
        (out,) = jax.linear_transpose(lambda v: _plain(x, v, **params), kernel)(g)
        return out

    cpu = partial(_kernel_gradient_on_cpu, kernel=kernel, **params)
    return lax.platform_dependent(g, x, cpu=lambda g, x: cpu(g, x=x), default=plain)


def _batch(args, dims, **params):
    x, kernel = args
    x_dim, kernel_dim = dims
    if kernel_dim is None:  # fold the batch into the convolution's own
        x = jnp.moveaxis(x, x_dim, 0)
        out = _conv(x.reshape(-1, *x.shape[2:]), kernel, **params)
        return out.reshape(*x.shape[:2], *out.shape[1:]), 0
    kernel = jnp.moveaxis(kernel, kernel_dim, 0)
    if x_dim is None:  # one image, many kernels: more output channels
        b, kh, kw, i, o = kernel.shape
        out = _conv(x, jnp.moveaxis(kernel, 0, 3).reshape(kh, kw, i, b * o), **params)
        return out.reshape(*out.shape[:3], b, o), 3
    # Ensemble members, each with its own kernel. Grouped convolutions are far slower than one
    # convolution per member on the CPU.
    x = jnp.moveaxis(x, x_dim, 0)
    return jnp.stack([_conv(*member, **params) for member in zip(x, kernel, strict=True)]), 0


_conv_p = Primitive("odejax_conv2d")
_conv_p.def_impl(jax.jit(_plain, static_argnames=("stride", "padding", "precision")))
_conv_p.def_abstract_eval(
    lambda x, kernel, **params: ShapedArray(
        (out := jax.eval_shape(partial(_plain, **params), x, kernel)).shape, out.dtype
    )
)
ad.defbilinear(_conv_p, _input_gradient, _kernel_gradient)
batching.primitive_batchers[_conv_p] = _batch
mlir.register_lowering(_conv_p, mlir.lower_fun(_plain, multiple_results=False))
mlir.register_lowering(
    _conv_p, mlir.lower_fun(_plain_on_cpu, multiple_results=False), platform="cpu"
)
