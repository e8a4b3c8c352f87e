"""Divide relevance by what the inputs contributed, for rules that tell positive contributions from negative ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PxpError
from ._library import compute_dtype, define

FORMS = ("plain", "positive", "gamma", "both", "both signed")


def _quotient(relevance: Tensor, denominator: Tensor, eps: float) -> Tensor:
    """``R / (D + eps)`` for D >= 0 up to rounding; 0 where D is 0, as nothing contributed."""
    denominator = denominator.clamp(min=0)
    return torch.where(denominator == 0, 0, relevance / (denominator + eps))


def reference_divided(
    relevance: Tensor, z: Tensor, product: Tensor, form: str, eps: float, first: float, second: float
) -> tuple[Tensor, Tensor | None]:
    """The two results for a relevance, in the precision of the computation."""
    if form == "plain":
        return _quotient(relevance, product, eps), None
    if form == "positive":
        return _quotient(relevance, product + z, eps), None
    if form == "gamma":
        shared = _quotient(relevance, product + first * z.abs(), eps)
        return shared * z.sign(), shared
    gains = _quotient(first * relevance, product + z if form == "both signed" else product, eps)
    losses = _quotient(second * relevance, product - z, eps)
    return (gains + losses, gains - losses) if form == "both signed" else (gains, losses)


def reference(
    carry: Tensor, output: Tensor, product: Tensor, form: str, eps: float, first: float, second: float, given: bool
) -> None:
    """What the operator means, written for reading. The compiled kernels must give the same."""
    dtype = compute_dtype(output.dtype)
    z, c = output.to(dtype), carry.to(dtype)
    one, other = reference_divided(c if given else c * z, z, product.to(dtype), form, eps, first, second)
    carry.copy_(one)
    if other is not None:
        product.copy_(other)


_operator = define(
    "share_(Tensor(a!) carry, Tensor output, Tensor(b!) product, int form, float eps, float first, float second, "
    "bool given) -> ()",
    reference,
    lambda *arguments: None,
    {"form": FORMS},
)


def share_(
    carry: Tensor,
    output: Tensor,
    product: Tensor,
    *,
    form: str = "plain",
    eps: float = 1e-6,
    first: float = 1.0,
    second: float = 1.0,
    given: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Share the relevance of a layer's outputs by a second product ``G`` of the layer, one pass over memory.

    With ``R = c z`` and :math:`q(D) = R / (\max(D, 0) + \epsilon)`, 0 where ``D <= 0``, the results are

    ===============  ===========================  ==============================
    form             in the memory of `carry`     in the memory of `product`
    ===============  ===========================  ==============================
    ``plain``        q(G)                         (undefined)
    ``positive``     q(G + z)                     (undefined)
    ``gamma``        sgn(z) v                     v = q(G + first \|z\|)
    ``both``         p = first q(G)               n = second q(G - z)
    ``both signed``  p + n, with p = first        p - n, with n = second
                     q(G + z)                     q(G - z)
    ===============  ===========================  ==============================

    Arithmetic is done in float32, in float64 for float64 tensors.

    Parameters
    ----------
    carry
        ``c``, any shape; with `given`, the relevance itself.
    output
        ``z``, shape, dtype (float64, float32, bfloat16 or float16) and device of `carry`; only read.
    product
        ``G``, likewise.
    form
        One of :data:`FORMS`.
    eps
        The stabilizer, in the units of `output`, not negative.
    first, second
        Factors, as above.

    Returns
    -------
    tuple of Tensor
        The two results: `carry` and `product`, or copies with the strides of `output` where theirs differ.

    Raises
    ------
    PxpError
        Shapes, dtypes or devices differ, or an argument is outside what is described above.
    """
    for name, tensor in (("output", output), ("product", product)):
        if tensor.shape != carry.shape or tensor.dtype != carry.dtype or tensor.device != carry.device:
            raise PxpError(
                f"share_: carry is {carry.dtype} {tuple(carry.shape)} on {carry.device}, {name} is {tensor.dtype} "
                f"{tuple(tensor.shape)} on {tensor.device}; pass tensors of one shape, dtype and device"
            )
    if not carry.is_floating_point():
        raise PxpError(f"share_: carry is {carry.dtype}; pass floating-point tensors")
    if form not in FORMS:
        raise PxpError(f"share_: no form {form!r}; choose one of {', '.join(FORMS)}")
    if not eps >= 0:
        raise PxpError(f"share_: eps is {eps}; pass a number that is not negative")
    if not torch.ops.aten.is_non_overlapping_and_dense(output):
        output = output.contiguous()
    carry, product = (_laid_out_as(output, tensor) for tensor in (carry, product))
    _operator(carry, output, product, FORMS.index(form), eps, first, second, given)
    return carry, product


def _laid_out_as(output: Tensor, tensor: Tensor) -> Tensor:
    return tensor if tensor.stride() == output.stride() else torch.empty_like(output).copy_(tensor)
