"""The epsilon rule through a convolution and on to the layer below: an input gradient that writes no carry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import PxpError
from ._library import compute_dtype, define
from .epsilon import ACTIVATIONS, NAMES
from .linear_epsilon import add_sums, check_common, finish


def reference(
    scaled: Tensor,
    weight: Tensor,
    output: Tensor,
    carry: Tensor | None,
    sums: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    eps: float,
    activation: str,
    tf32: bool,
) -> Tensor:
    """What the operator means, written for reading. The compiled kernels must give the same."""
    dtype = compute_dtype(output.dtype)
    total = torch.zeros_like(output, dtype=dtype)
    if scaled.numel():
        total = torch.nn.grad.conv2d_input(
            output.shape, weight.to(dtype), scaled.to(dtype), list(stride), list(padding), list(dilation), groups
        )
    if carry is not None:
        total = total + carry.to(dtype)
    result, relevance = finish(total, output, eps, activation, 1, False)
    if sums is not None:
        add_sums(sums, relevance, 1)
    return result


def fake(
    scaled: Tensor,
    weight: Tensor,
    output: Tensor,
    carry: Tensor | None,
    sums: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    eps: float,
    activation: str,
    tf32: bool,
) -> Tensor:
    return torch.empty_like(output)


_operator = define(
    "convolution_epsilon(Tensor scaled, Tensor weight, Tensor output, Tensor? carry, Tensor(a!)? sums, int[] stride, "
    "int[] padding, int[] dilation, int groups, float eps, int activation, bool tf32) -> Tensor",
    reference,
    fake,
    NAMES,
)


def convolution_epsilon(
    scaled: Tensor,
    weight: Tensor,
    output: Tensor,
    carry: Tensor | None = None,
    *,
    sums: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    eps: float = 1e-6,
    activation: str = "identity",
    tf32: bool = False,
) -> Tensor:
    r"""Send what :func:`epsilon` scaled back through a convolution, and do the epsilon work of the layer below.

    With ``W`` the convolution's weight, ``z`` what the layer below stored (its output, or a residual sum) and ``act``
    the activation between the two,

    .. math:: c = W^T s_{above} + c_{residual}, \qquad
              s = c \, \frac{act(z)}{z} \, \frac{|z|}{|z| + \epsilon} ,

    where :math:`W^T` is the input gradient of the convolution. ``c`` is summed in float32 (float64 for float64
    tensors) and never rounded or written. The same input gives the same bits.

    Parameters
    ----------
    scaled
        :math:`s_{above}`, ``[N, K, OH, OW]``: float64, float32, bfloat16 or float16.
    weight
        ``W``, ``[K, C / groups, R, S]``, of the dtype of `scaled`, as are all but `sums`.
    output
        ``z``, ``[N, C, H, W]``. The fast kernels want this, `scaled` and `weight` channels-last.
    carry
        Shape of `output`: the carry that a residual branch adds; None for 0.
    sums
        ``[2, N, C]``, float32 (float64 for float64), to which the relevance :math:`c \frac{act(z)}{z} z` of every
        channel is added, summed over the positions: signed in row 0, absolute in row 1. A slice of a larger table,
        with any strides but neighbouring units. None where nobody asks for it.
    stride, padding, dilation
        Of the convolution, for rows and columns.
    groups
        Of the convolution.
    eps
        The stabilizer, in the units of `output`, not negative. The factor is 0 at ``z = 0``, also for ``eps = 0``.
    activation
        One of :data:`ACTIVATIONS`. The ratio at ``z = 0`` is its limit (0 for ReLU, 1/2 for GELU and SiLU).
    tf32
        Whether float32 products may round their factors to 10 bits of fraction, which tensor cores need. The sums
        stay float32. Other dtypes, and the CPU, take no notice.

    Returns
    -------
    Tensor
        ``s``, with the shape, dtype and strides of `output` (its order of dimensions where it has gaps).

    Raises
    ------
    PxpError
        Shapes, dtypes or devices do not fit, or an argument is outside what is described above.

    References
    ----------
    Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation,
    PLoS ONE 10(7), 2015, equation 58 (the stabilized rule).
    """
    name = "convolution_epsilon"
    for what, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(pair) != 2 or min(pair) < least:
            raise PxpError(f"{name}: {what} is {tuple(pair)}; pass two numbers from {least} on, for rows and columns")
    if groups < 1:
        raise PxpError(f"{name}: groups is {groups}; pass a number from 1 on")
    shapes = f"scaled is {tuple(scaled.shape)}, weight {tuple(weight.shape)}, output {tuple(output.shape)}"
    if scaled.dim() != 4 or weight.dim() != 4 or output.dim() != 4 or 0 in weight.shape[2:]:
        raise PxpError(f"{name}: {shapes}; pass scaled [N, K, OH, OW], weight [K, C/groups, R, S], output [N, C, H, W]")
    features, channels = weight.shape[:2]
    above = [
        (size + 2 * pad - gap * (taps - 1) - 1) // step + 1
        for size, taps, step, pad, gap in zip(
            output.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    expected = (output.shape[0], features, *above)
    if features % groups or output.shape[1] != channels * groups or tuple(scaled.shape) != expected or min(above) < 1:
        raise PxpError(
            f"{name}: {shapes}; of this output, a convolution of this weight with {groups} groups, stride "
            f"{tuple(stride)}, padding {tuple(padding)} and dilation {tuple(dilation)} makes {expected} out of "
            f"{channels * groups} channels: pass what belongs together"
        )
    check_common(name, scaled, weight, output, carry, sums, output.shape[1], eps, activation)
    number = ACTIVATIONS.index(activation)
    return _operator(
        scaled, weight, output, carry, sums, list(stride), list(padding), list(dilation), groups, eps, number, tf32
    )
