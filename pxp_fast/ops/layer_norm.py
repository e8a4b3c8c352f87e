"""Carry relevance back through a layer norm whose standard deviation is held constant."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PxpError
from ._library import compute_dtype, define


def reference(
    carry: Tensor, output: Tensor, rstd: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float
) -> Tensor:
    """What the operator means, written for reading. The compiled kernels must give the same."""
    dtype = compute_dtype(carry.dtype)
    magnitude = output.to(dtype).abs()
    factor = torch.where(magnitude == 0, 0, magnitude / (magnitude + eps))
    scaled = carry.to(dtype) * factor * rstd.to(dtype)
    if weight is not None:
        scaled = scaled * weight.to(dtype)
    result = scaled - scaled.mean(-1, keepdim=True)
    if residual is not None:
        result = result + residual.to(dtype)
    return result.to(carry.dtype).contiguous()


def fake(
    carry: Tensor, output: Tensor, rstd: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float
) -> Tensor:
    return torch.empty_like(carry, memory_format=torch.contiguous_format)


_operator = define(
    "layer_norm(Tensor carry, Tensor output, Tensor rstd, Tensor? weight, Tensor? residual, float eps) -> Tensor",
    reference,
    fake,
)


def layer_norm(
    carry: Tensor,
    output: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
) -> Tensor:
    r"""Apply the epsilon rule to a layer norm over the last dimension, its standard deviation held constant.

    With ``y`` the layer's output and ``c`` the carry there,

    .. math:: t = c \, \frac{|y|}{|y| + \epsilon} \, \gamma \, \sigma^{-1}, \qquad
              c_x = t - \frac{1}{D} \sum_i t_i + c_{residual} .

    Arithmetic is done in float32, in float64 for float64 tensors; the same input gives the same bits.

    Parameters
    ----------
    carry, output
        ``[..., D]``, one shape, dtype (float64, float32, bfloat16, float16) and device.
    rstd
        ``[..., 1]``, one over the standard deviation as the forward pass had it: float32, or the dtype of `carry`.
    weight
        ``[D]``, the scale ``gamma``; None for 1.
    residual
        Shape and dtype of `carry`: the carry that a skip connection adds; None for 0.
    eps
        The stabilizer, in the units of `output`, not negative. The factor is 0 at ``y = 0``, also for ``eps = 0``.

    Returns
    -------
    Tensor
        The carry at the layer's input: shape and dtype of `carry`, contiguous.

    Raises
    ------
    PxpError
        A shape or dtype does not fit.

    References
    ----------
    Ali et al., XAI for Transformers: Better Explanations through Conservative Propagation, ICML 2022, section 3.2
    (the standard deviation taken as a constant).
    """
    if carry.shape != output.shape or carry.dtype != output.dtype or not carry.is_floating_point() or not carry.dim():
        raise PxpError(
            f"layer_norm: carry is {carry.dtype} {tuple(carry.shape)}, output is {output.dtype} "
            f"{tuple(output.shape)}; pass two floating-point tensors [..., D] of one shape and dtype"
        )
    if rstd.shape != (*carry.shape[:-1], 1) or rstd.dtype not in (torch.float32, carry.dtype):
        raise PxpError(
            f"layer_norm: rstd is {rstd.dtype} {tuple(rstd.shape)}; "
            f"pass float32 or {carry.dtype} {(*carry.shape[:-1], 1)}"
        )
    if weight is not None and weight.shape != carry.shape[-1:]:
        raise PxpError(f"layer_norm: weight is {tuple(weight.shape)}; pass {tuple(carry.shape[-1:])}")
    if residual is not None and (residual.shape != carry.shape or residual.dtype != carry.dtype):
        raise PxpError(
            f"layer_norm: residual is {residual.dtype} {tuple(residual.shape)}; "
            f"pass {carry.dtype} {tuple(carry.shape)} like carry"
        )
    if not eps >= 0:
        raise PxpError(f"layer_norm: eps is {eps}; pass a number that is not negative")
    return _operator(carry, output, rstd, weight, residual, eps)
