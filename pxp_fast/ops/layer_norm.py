"""Carry relevance back through a layer norm whose standard deviation is held constant."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PxpError
from ._checks import check_apart
from ._library import compute_dtype, define


def _factor(value: Tensor, eps: float) -> Tensor:
    magnitude = value.abs()
    return torch.where(magnitude == 0, 0, magnitude / (magnitude + eps))


def reference(
    carry: Tensor,
    output: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    eps: float,
    join: Tensor | None = None,
) -> Tensor:
    """What the operator means, written for reading. The compiled kernels must give the same."""
    dtype = compute_dtype(carry.dtype)
    scaled = carry.to(dtype) * _factor(output.to(dtype), eps) * rstd.to(dtype)
    if weight is not None:
        scaled = scaled * weight.to(dtype)
    result = scaled - scaled.mean(-1, keepdim=True)
    if residual is not None:
        result = result + residual.to(dtype)
    if join is not None:
        result = result * _factor(join.to(dtype), eps)
    return result.to(carry.dtype).contiguous()


def reference_in_place(
    carry: Tensor,
    output: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor,
    eps: float,
    join: Tensor | None = None,
) -> None:
    """What `layer_norm_` means."""
    residual.copy_(reference(carry, output, rstd, weight, residual, eps, join))


def fake(
    carry: Tensor,
    output: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    eps: float,
    join: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(carry, memory_format=torch.contiguous_format)


_operator = define(
    "layer_norm(Tensor carry, Tensor output, Tensor rstd, Tensor? weight, Tensor? residual, float eps, "
    "Tensor? join=None) -> Tensor",
    reference,
    fake,
)

_in_place = define(
    "layer_norm_(Tensor carry, Tensor output, Tensor rstd, Tensor? weight, Tensor(a!) residual, float eps, "
    "Tensor? join=None) -> ()",
    reference_in_place,
    lambda *arguments: None,
)


def layer_norm(
    carry: Tensor,
    output: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    residual: Tensor | None = None,
    join: Tensor | None = None,
    *,
    eps: float = 1e-6,
) -> Tensor:
    r"""Apply the epsilon rule to a layer norm over the last dimension, its standard deviation held constant.

    With ``y`` the layer's output and ``c`` the carry there,

    .. math:: t = c \, \frac{|y|}{|y| + \epsilon} \, \gamma \, \sigma^{-1}, \qquad
              c_x = \Big( t - \frac{1}{D} \sum_i t_i + c_{residual} \Big) \frac{|x|}{|x| + \epsilon} ,

    the last factor only where the layer's input ``x`` is a sum that has its own stabilizer.
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
    join
        Shape and dtype of `carry`: ``x``, the value of the residual sum that the layer normalises, to which the rule of
        a sum is applied as well; None to leave the carry at ``x`` as it comes.
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
    _check("layer_norm", carry, output, rstd, weight, residual, join, eps)
    return _operator(carry, output, rstd, weight, residual, eps, join)


def layer_norm_(
    carry: Tensor,
    output: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor,
    join: Tensor | None = None,
    *,
    eps: float = 1e-6,
) -> Tensor:
    """Do what :func:`layer_norm` does, and write the result over the residual: nothing is allocated.

    Parameters
    ----------
    carry, output, rstd, weight, join, eps
        As for :func:`layer_norm`, which gives the same bits.
    residual
        Shape and dtype of `carry`; becomes the carry at the layer's input. Contiguous, or it is copied twice. No two of
        its elements may share memory, and none may lie in another of the tensors.

    Returns
    -------
    Tensor
        `residual`.

    Raises
    ------
    PxpError
        `residual` overlaps itself, or a shape or dtype does not fit.
    """
    _check("layer_norm_", carry, output, rstd, weight, residual, join, eps)
    check_apart("layer_norm_", "residual", residual)
    _in_place(carry, output, rstd, weight, residual, eps, join)
    return residual


def _check(
    op: str,
    carry: Tensor,
    output: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    join: Tensor | None,
    eps: float,
) -> None:
    if carry.shape != output.shape or carry.dtype != output.dtype or not carry.is_floating_point() or not carry.dim():
        raise PxpError(
            f"{op}: carry is {carry.dtype} {tuple(carry.shape)}, output is {output.dtype} "
            f"{tuple(output.shape)}; pass two floating-point tensors [..., D] of one shape and dtype"
        )
    if rstd.shape != (*carry.shape[:-1], 1) or rstd.dtype not in (torch.float32, carry.dtype):
        raise PxpError(
            f"{op}: rstd is {rstd.dtype} {tuple(rstd.shape)}; pass float32 or {carry.dtype} {(*carry.shape[:-1], 1)}"
        )
    if weight is not None and weight.shape != carry.shape[-1:]:
        raise PxpError(f"{op}: weight is {tuple(weight.shape)}; pass {tuple(carry.shape[-1:])}")
    for name, tensor in (("residual", residual), ("join", join)):
        if tensor is not None and (tensor.shape != carry.shape or tensor.dtype != carry.dtype):
            raise PxpError(
                f"{op}: {name} is {tensor.dtype} {tuple(tensor.shape)}; "
                f"pass {carry.dtype} {tuple(carry.shape)} like carry"
            )
    if not eps >= 0:
        raise PxpError(f"{op}: eps is {eps}; pass a number that is not negative")
