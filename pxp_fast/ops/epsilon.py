"""Stabilise a carry, send it through an activation, and sum the relevance of every unit: one pass over memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import PxpError
from ._checks import check_apart
from ._library import compute_dtype, define

# act(z) / z for every activation, continued to its limit at z = 0. The sigmoid form of the tanh approximation and erfc
# keep their relative precision for negative z, where 1 + tanh and 1 + erf cancel; erfc magnifies the rounding of its
# argument, hence in double.
_RATIOS = {
    "identity": lambda z: torch.ones_like(z),
    "relu": lambda z: (z > 0).to(z.dtype),
    "relu6": lambda z: torch.where(z > 6, 6 / z, (z > 0).to(z.dtype)),
    "gelu": lambda z: (0.5 * torch.special.erfc(z.double() * -math.sqrt(0.5))).to(z.dtype),
    "gelu_tanh": lambda z: torch.sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)),
    "silu": torch.sigmoid,
    "hardswish": lambda z: (z + 3).clamp(0, 6) / 6,
}
ACTIVATIONS = tuple(_RATIOS)
NAMES = {"activation": ACTIVATIONS}
"""What operators call by a number: see :func:`pxp_fast.ops._library.define`."""


def _pass(carry: Tensor, output: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """``z`` and ``c act(z) / z``, in the precision of the computation."""
    dtype = compute_dtype(output.dtype)
    z = output.to(dtype)
    return z, carry.to(dtype) * _RATIOS[activation](z)


def _stabilise(passed: Tensor, z: Tensor, eps: float) -> Tensor:
    magnitude = z.abs()
    return passed * torch.where(magnitude == 0, 0, magnitude / (magnitude + eps))


def _sum_units(relevance: Tensor, unit_dim: int, group: int) -> Tensor:
    samples, channels = relevance.shape[0], relevance.shape[unit_dim]
    positions = math.prod(relevance.shape[1:]) // channels if channels else 0
    relevance = relevance.movedim(unit_dim, -1).reshape(samples, positions, channels // group, group).sum(-1)
    return torch.stack([relevance.sum(1), relevance.abs().sum(1)])


def reference(
    carry: Tensor, output: Tensor, eps: float, activation: str, unit_dim: int, group: int
) -> tuple[Tensor, Tensor]:
    """What the operator means, written for reading. The compiled kernels must give the same."""
    z, passed = _pass(carry, output, activation)
    scaled = torch.empty_like(output).copy_(_stabilise(passed, z, eps))
    return scaled, _sum_units(passed * z, unit_dim, group)


def reference_in_place(
    carry: Tensor,
    output: Tensor,
    sums: Tensor | None,
    eps: float,
    activation: str,
    unit_dim: int,
    group: int,
    stabilized_sums: bool,
) -> None:
    """What `epsilon_` means."""
    carry.copy_(_scale_and_add(carry, output, sums, eps, activation, unit_dim, group, stabilized_sums))


def reference_over(
    carry: Tensor,
    output: Tensor,
    sums: Tensor | None,
    eps: float,
    activation: str,
    unit_dim: int,
    group: int,
    stabilized_sums: bool,
) -> None:
    """What `epsilon_over_` means."""
    output.copy_(_scale_and_add(carry, output, sums, eps, activation, unit_dim, group, stabilized_sums))


def _scale_and_add(
    carry: Tensor,
    output: Tensor,
    sums: Tensor | None,
    eps: float,
    activation: str,
    unit_dim: int,
    group: int,
    stabilized_sums: bool,
) -> Tensor:
    z, passed = _pass(carry, output, activation)
    scaled = _stabilise(passed, z, eps)
    if sums is not None:
        sums.add_(_sum_units((scaled if stabilized_sums else passed) * z, unit_dim, group))
    return scaled


def reference_unit_sums(
    sums: Tensor, carry: Tensor, output: Tensor, activation: str, unit_dim: int, group: int
) -> None:
    """What `unit_sums_` means."""
    z, passed = _pass(carry, output, activation)
    sums.add_(_sum_units(passed * z, unit_dim, group))


def fake(
    carry: Tensor, output: Tensor, eps: float, activation: str, unit_dim: int, group: int
) -> tuple[Tensor, Tensor]:
    units = output.shape[unit_dim] // group
    sums = output.new_empty((2, output.shape[0], units), dtype=compute_dtype(output.dtype))
    return torch.empty_like(output), sums


_operator = define(
    "epsilon(Tensor carry, Tensor output, float eps, int activation, int unit_dim, int group) -> (Tensor, Tensor)",
    reference,
    fake,
    NAMES,
)
_in_place = define(
    "epsilon_(Tensor(a!) carry, Tensor output, Tensor(b!)? sums, float eps, int activation, int unit_dim, int group, "
    "bool stabilized_sums) -> ()",
    reference_in_place,
    lambda *arguments: None,
    NAMES,
)
_over = define(
    "epsilon_over_(Tensor carry, Tensor(a!) output, Tensor(b!)? sums, float eps, int activation, int unit_dim, "
    "int group, bool stabilized_sums) -> ()",
    reference_over,
    lambda *arguments: None,
    NAMES,
)
_unit_sums = define(
    "unit_sums_(Tensor(a!) sums, Tensor carry, Tensor output, int activation, int unit_dim, int group) -> ()",
    reference_unit_sums,
    lambda *arguments: None,
    NAMES,
)


def epsilon(
    carry: Tensor,
    output: Tensor,
    *,
    eps: float = 1e-6,
    activation: str = "identity",
    unit_dim: int = 1,
    group: int = 1,
) -> tuple[Tensor, Tensor]:
    r"""Apply the epsilon rule at the output of a linear layer, and sum the relevance of its units.

    With ``z`` the layer's output, ``y = act(z)`` what follows it, and ``c`` the carry (relevance divided by
    activation) at ``y``, the relevance at ``z`` is :math:`R = c \, \frac{act(z)}{z} \, z`, and what the layer's
    transposed weights are to be applied to is

    .. math:: s = c \, \frac{act(z)}{z} \, \frac{|z|}{|z| + \epsilon} .

    Arithmetic is done in float32, in float64 for float64 tensors. The same input gives the same bits, whatever the
    number of threads. Values that are not finite, in either tensor, make the sums of their unit NaN.

    Parameters
    ----------
    carry
        ``[N, ...]``, the carry above the activation. Any strides.
    output
        ``z``, shape and dtype (float64, float32, bfloat16 or float16) of `carry`. Without a copy: contiguous,
        channels-last, and any strides in which the units, or the positions, lie next to each other.
    eps
        The stabilizer, in the units of `output`, not negative. The factor is 0 at ``z = 0``, also for ``eps = 0``.
    activation
        One of :data:`ACTIVATIONS`. The ratio at ``z = 0`` is its limit (0 for ReLU, 1/2 for GELU and SiLU).
    unit_dim
        Where the units are: 1 (convolutions, ``[N, C, *]``) or -1 (linear layers and attention, ``[N, *, C]``).
    group
        How many neighbouring channels make one unit (the width of an attention head); more than 1 only where
        the units are the last dimension.

    Returns
    -------
    scaled : Tensor
        ``s``, with the shape, dtype and strides of `output` (its order of dimensions where it has gaps).
    sums : Tensor
        ``[2, N, units]``, float32 (float64 for float64). With ``r[n, p, u]`` the relevance of unit ``u`` at position
        ``p``, added over its group: row 0 is the sum of ``r`` over the positions, row 1 the sum of ``|r|``.

    Raises
    ------
    PxpError
        Shapes or dtypes differ, or an argument is outside what is described above.

    References
    ----------
    Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation,
    PLoS ONE 10(7), 2015, equation 58 (the stabilized rule).
    """
    _check("epsilon", carry, output, eps, activation, unit_dim, group)
    return _operator(carry, output, eps, ACTIVATIONS.index(activation), unit_dim, group)


def epsilon_(
    carry: Tensor,
    output: Tensor,
    sums: Tensor | None = None,
    *,
    eps: float = 1e-6,
    activation: str = "identity",
    unit_dim: int = 1,
    group: int = 1,
    stabilized_sums: bool = False,
) -> Tensor:
    """Do what :func:`epsilon` does in the memory of the carry, and add the relevance of the units to a table.

    Nothing is allocated where the strides need no copy. The parameters that are not named here are those of
    :func:`epsilon`, which gives the same bits.

    Parameters
    ----------
    carry
        ``[N, ...]``; becomes ``s``. No two of its elements may share memory, as those of an expanded tensor do.
    output
        ``z``, shape and dtype of `carry`; not in the memory of `carry`. Its strides may differ, at the price of a copy
        where the units, or the positions, are not neighbours in both.
    sums
        ``[2, N, units]``, float32 (float64 for float64), the last stride 1: usually a slice of a table of all units.
        The sums that `epsilon` returns are added to it. None where no sums are wanted, which takes less time.
    stabilized_sums
        Sum ``s z`` instead of the relevance at ``z``: what is left behind the stabilizer (attention heads).

    Returns
    -------
    Tensor
        `carry`.

    Raises
    ------
    PxpError
        `carry` or `sums` overlaps itself, or an argument is outside what is described above.
    """
    _check("epsilon_", carry, output, eps, activation, unit_dim, group)
    check_apart("epsilon_", "carry", carry)
    if sums is not None:
        _check_sums("epsilon_", sums, output, unit_dim, group)
    _in_place(carry, output, sums, eps, ACTIVATIONS.index(activation), unit_dim, group, stabilized_sums)
    return carry


def epsilon_over_(
    carry: Tensor,
    output: Tensor,
    sums: Tensor | None = None,
    *,
    eps: float = 1e-6,
    activation: str = "identity",
    unit_dim: int = 1,
    group: int = 1,
    stabilized_sums: bool = False,
) -> Tensor:
    """Do what :func:`epsilon_` does in the memory of the output, where others still need the carry.

    The parameters are those of :func:`epsilon_`, with the roles of the two exchanged: `output` becomes ``s`` and no two
    of its elements may share memory, and `carry`, not in the memory of `output`, is only read.

    Returns
    -------
    Tensor
        `output`.

    Raises
    ------
    PxpError
        `output` or `sums` overlaps itself, or an argument is outside what is described above.
    """
    _check("epsilon_over_", carry, output, eps, activation, unit_dim, group)
    check_apart("epsilon_over_", "output", output)
    if sums is not None:
        _check_sums("epsilon_over_", sums, output, unit_dim, group)
    _over(carry, output, sums, eps, ACTIVATIONS.index(activation), unit_dim, group, stabilized_sums)
    return output


def unit_sums_(
    sums: Tensor,
    carry: Tensor,
    output: Tensor,
    *,
    activation: str = "identity",
    unit_dim: int = 1,
    group: int = 1,
) -> Tensor:
    """Add the relevance of the units to a table, where nothing travels further down: the sums of :func:`epsilon` alone.

    Parameters
    ----------
    sums
        ``[2, N, units]``, float32 (float64 for float64), the last stride 1: as for :func:`epsilon_`.
    carry, output, activation, unit_dim, group
        As for :func:`epsilon`, which gives the same bits; both tensors are only read.

    Returns
    -------
    Tensor
        `sums`.

    Raises
    ------
    PxpError
        An argument is outside what is described above.
    """
    _check("unit_sums_", carry, output, 0.0, activation, unit_dim, group)
    _check_sums("unit_sums_", sums, output, unit_dim, group)
    _unit_sums(sums, carry, output, ACTIVATIONS.index(activation), unit_dim, group)
    return sums


def _check(name: str, carry: Tensor, output: Tensor, eps: float, activation: str, unit_dim: int, group: int) -> None:
    if carry.shape != output.shape or carry.dtype != output.dtype or carry.device != output.device:
        raise PxpError(
            f"{name}: carry is {carry.dtype} {tuple(carry.shape)} on {carry.device}, output is {output.dtype} "
            f"{tuple(output.shape)} on {output.device}; pass two tensors of one shape, dtype and device"
        )
    if not output.is_floating_point() or output.dim() < 2:
        raise PxpError(
            f"{name}: output is {output.dtype} with {output.dim()} dimensions; "
            "pass a floating-point tensor [N, ...] with at least 2"
        )
    if activation not in _RATIOS:
        raise PxpError(f"{name}: no activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    if not eps >= 0:
        raise PxpError(f"{name}: eps is {eps}; pass a number that is not negative")
    last = unit_dim in (-1, output.dim() - 1)
    if not (last or unit_dim == 1):
        raise PxpError(f"{name}: unit_dim is {unit_dim}; pass 1 (convolutions) or -1 (linear layers)")
    if group < 1 or output.shape[unit_dim] % group or (group > 1 and not last):
        raise PxpError(
            f"{name}: group is {group} for {output.shape[unit_dim]} channels in dimension {unit_dim}; "
            "pass a divisor of the channels, and more than 1 only where they are the last dimension"
        )


def _check_sums(name: str, sums: Tensor, output: Tensor, unit_dim: int, group: int) -> None:
    shape, dtype = (2, output.shape[0], output.shape[unit_dim] // group), compute_dtype(output.dtype)
    if tuple(sums.shape) != shape or sums.dtype != dtype or sums.device != output.device:
        raise PxpError(
            f"{name}: sums is {sums.dtype} {tuple(sums.shape)} on {sums.device}; "
            f"pass {dtype} {shape} on {output.device}, or a slice of a bigger table"
        )
    if sums.shape[-1] > 1 and sums.stride(-1) != 1:
        raise PxpError(f"{name}: sums has strides {sums.stride()}; pass a table whose last stride is 1")
    check_apart(name, "sums", sums)
