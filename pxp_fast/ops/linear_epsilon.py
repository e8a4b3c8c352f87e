"""The epsilon rule through a linear layer and on to the layer below: one matrix product that writes no carry."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PxpError
from ._library import compute_dtype, define
from .epsilon import _RATIOS, ACTIVATIONS, NAMES


def finish(
    carry: Tensor, output: Tensor, eps: float, activation: str, unit_dim: int, stabilized_sums: bool
) -> tuple[Tensor, Tensor]:
    """What stands behind the product: stabilise `carry` at `output`, and its relevance with the units last."""
    z = output.to(carry.dtype)
    passed = carry * _RATIOS[activation](z)
    magnitude = z.abs()
    scaled = passed * torch.where(magnitude == 0, 0, magnitude / (magnitude + eps))
    relevance = (scaled if stabilized_sums else passed) * z
    return torch.empty_like(output).copy_(scaled), relevance.movedim(unit_dim, -1)


def add_sums(sums: Tensor, relevance: Tensor, group: int) -> None:
    """Add the relevance ``[N, *, C]`` of all positions to ``[2, N, units]``, signed and absolute."""
    samples, units = sums.shape[1:]
    if relevance.numel():
        per_unit = relevance.reshape(samples, -1, units, group).sum(-1)
        sums += torch.stack([per_unit.sum(1), per_unit.abs().sum(1)])


def reference(
    scaled: Tensor,
    weight: Tensor,
    output: Tensor,
    carry: Tensor | None,
    sums: Tensor | None,
    eps: float,
    activation: str,
    group: int,
    stabilized_sums: bool,
    tf32: bool,
) -> Tensor:
    """What the operator means, written for reading. The compiled kernels must give the same."""
    dtype = compute_dtype(output.dtype)
    total = scaled.to(dtype) @ weight.to(dtype)
    if carry is not None:
        total = total + carry.to(dtype)
    result, relevance = finish(total, output, eps, activation, -1, stabilized_sums)
    if sums is not None:
        add_sums(sums, relevance, group)
    return result


def fake(
    scaled: Tensor,
    weight: Tensor,
    output: Tensor,
    carry: Tensor | None,
    sums: Tensor | None,
    eps: float,
    activation: str,
    group: int,
    stabilized_sums: bool,
    tf32: bool,
) -> Tensor:
    return torch.empty_like(output)


_operator = define(
    "linear_epsilon(Tensor scaled, Tensor weight, Tensor output, Tensor? carry, Tensor(a!)? sums, float eps, "
    "int activation, int group, bool stabilized_sums, bool tf32) -> Tensor",
    reference,
    fake,
    NAMES,
)


def check_common(
    op: str,
    scaled: Tensor,
    weight: Tensor,
    output: Tensor,
    carry: Tensor | None,
    sums: Tensor | None,
    units: int,
    eps: float,
    activation: str,
) -> None:
    """What holds for the arguments of a product of either kind."""
    for name, tensor in (("scaled", scaled), ("weight", weight), ("carry", carry)):
        if tensor is not None and (tensor.dtype != output.dtype or tensor.device != output.device):
            raise PxpError(
                f"{op}: {name} is {tensor.dtype} on {tensor.device}, output is {output.dtype} on {output.device}; "
                "pass tensors of one dtype and device"
            )
    if not output.is_floating_point():
        raise PxpError(f"{op}: output is {output.dtype}; pass a floating-point tensor")
    if carry is not None and carry.shape != output.shape:
        raise PxpError(f"{op}: carry is {tuple(carry.shape)}, output is {tuple(output.shape)}; pass one shape")
    if sums is not None:
        shape, dtype = (2, output.shape[0], units), compute_dtype(output.dtype)
        if sums.shape != shape or sums.dtype != dtype or sums.device != output.device:
            raise PxpError(
                f"{op}: sums is {sums.dtype} {tuple(sums.shape)} on {sums.device}; "
                f"pass {dtype} {shape} on {output.device}: signed and absolute sums of every sample and unit"
            )
        if units > 1 and sums.stride(-1) != 1:
            raise PxpError(f"{op}: the units of sums are {sums.stride(-1)} elements apart; pass them side by side")
    if activation not in ACTIVATIONS:
        raise PxpError(f"{op}: no activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    if not eps >= 0:
        raise PxpError(f"{op}: eps is {eps}; pass a number that is not negative")


def linear_epsilon(
    scaled: Tensor,
    weight: Tensor,
    output: Tensor,
    carry: Tensor | None = None,
    *,
    sums: Tensor | None = None,
    eps: float = 1e-6,
    activation: str = "identity",
    group: int = 1,
    stabilized_sums: bool = False,
    tf32: bool = False,
) -> Tensor:
    r"""Send what :func:`epsilon` scaled back through a linear layer, and do the epsilon work of the layer below.

    With ``W`` the layer's weight, ``z`` what the layer below stored (its output, or a residual sum) and ``act`` the
    activation between the two,

    .. math:: c = s_{above} W + c_{residual}, \qquad
              s = c \, \frac{act(z)}{z} \, \frac{|z|}{|z| + \epsilon} .

    ``c`` is summed in float32 (float64 for float64 tensors) and never rounded or written. The same input gives the
    same bits.

    Parameters
    ----------
    scaled
        :math:`s_{above}`, ``[N, *, O]``: float64, float32, bfloat16 or float16.
    weight
        ``W``, ``[O, I]``, of the dtype of `scaled`, as are all but `sums`.
    output
        ``z``, ``[N, *, I]``.
    carry
        Shape of `output`: the carry that a residual branch adds; None for 0.
    sums
        ``[2, N, I / group]``, float32 (float64 for float64), to which the relevance of the units is added, summed
        over the positions: signed in row 0, absolute in row 1. A slice of a larger table, with any strides but
        neighbouring units. None where nobody asks for it.
    eps
        The stabilizer, in the units of `output`, not negative. The factor is 0 at ``z = 0``, also for ``eps = 0``.
    activation
        One of :data:`ACTIVATIONS`. The ratio at ``z = 0`` is its limit (0 for ReLU, 1/2 for GELU and SiLU).
    group
        How many neighbouring channels make one unit (the width of an attention head). Their relevance is added
        before its absolute value is taken.
    stabilized_sums
        Whether `sums` gets :math:`s z`, the relevance that goes on, or (False) the relevance
        :math:`c \frac{act(z)}{z} z` that arrives.
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
    rows, columns = tuple(weight.shape) if weight.dim() == 2 else (None, None)
    if (
        weight.dim() != 2
        or output.dim() < 2
        or scaled.shape[:-1] != output.shape[:-1]
        or (scaled.shape[-1], output.shape[-1]) != (rows, columns)
    ):
        raise PxpError(
            f"linear_epsilon: scaled is {tuple(scaled.shape)}, weight {tuple(weight.shape)}, output "
            f"{tuple(output.shape)}; pass scaled [N, *, O], weight [O, I] and output [N, *, I]"
        )
    if group < 1 or columns % group:
        raise PxpError(f"linear_epsilon: group is {group} for {columns} channels; pass a divisor of the channels")
    check_common("linear_epsilon", scaled, weight, output, carry, sums, columns // group, eps, activation)
    number = ACTIVATIONS.index(activation)
    return _operator(scaled, weight, output, carry, sums, eps, number, group, stabilized_sums, tf32)
