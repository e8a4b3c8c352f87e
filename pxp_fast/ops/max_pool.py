"""Max pooling without indices, and its way back joined with the epsilon pass of the layer below."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import PxpError
from ._checks import check_apart
from ._library import compute_dtype, define

LARGEST_WINDOW = 2**15 - 1
"""As many positions may a window have."""

Pair = Sequence[int]


def reference(value: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool) -> Tensor:
    """What `max_pool` means."""
    pooled = torch.max_pool2d(value, kernel, stride, padding, dilation, ceil_mode)
    return fake(value, kernel, stride, padding, dilation, ceil_mode).copy_(pooled)


def fake(value: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool) -> Tensor:
    sizes = zip(value.shape[2:], kernel, stride, padding, dilation, strict=True)
    shape = (*value.shape[:2], *(_pooled_size(*size, ceil_mode) for size in sizes))
    layout = torch.channels_last if _channels_last(value) else torch.contiguous_format
    return torch.empty(shape, dtype=value.dtype, device=value.device, memory_format=layout)


def _channels_last(value: Tensor) -> bool:
    return value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()


def _pooled_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    pooled = (reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    # The last window must not lie in the padding altogether.
    return pooled - 1 if ceil_mode and (pooled - 1) * stride >= size + padding else pooled


def reference_epsilon(
    carry: Tensor,
    value: Tensor,
    rest: Tensor | None,
    sums: Tensor | None,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
    eps: float | None,
) -> Tensor:
    """What `max_pool_epsilon` means."""
    dtype = compute_dtype(value.dtype)
    window = kernel, stride, padding, dilation, ceil_mode
    _, winners = torch.nn.functional.max_pool2d_with_indices(value, *window)
    total = torch.zeros_like(value, dtype=dtype, memory_format=torch.contiguous_format).flatten(2)
    total = total.scatter_add_(2, winners.flatten(2), carry.to(dtype).flatten(2)).view(value.shape)
    if rest is not None:
        total = total + rest.to(dtype)
    z = value.to(dtype)
    if sums is not None:
        relevance = (total * z).flatten(2)
        sums.add_(torch.stack([relevance.sum(2), relevance.abs().sum(2)]))
    if eps is not None:
        total = total * torch.where(z == 0, 0, z.abs() / (z.abs() + eps))
    return fake_epsilon(carry, value, rest, sums, *window, eps).copy_(total)


def fake_epsilon(carry: Tensor, value: Tensor, *rest: object) -> Tensor:
    layout = torch.channels_last if _channels_last(value) else torch.contiguous_format
    return torch.empty_like(value, memory_format=layout)


def reference_in_place(value: Tensor, carry: Tensor, *arguments) -> None:
    """What `max_pool_epsilon_` means."""
    value.copy_(reference_epsilon(carry, value, *arguments))


_WINDOW = "int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode"
_operator = define(f"max_pool(Tensor value, {_WINDOW}) -> Tensor", reference, fake)
_epsilon = define(
    f"max_pool_epsilon(Tensor carry, Tensor value, Tensor? rest, Tensor(a!)? sums, {_WINDOW}, float? eps) -> Tensor",
    reference_epsilon,
    fake_epsilon,
)
_in_place = define(
    f"max_pool_epsilon_(Tensor(a!) value, Tensor carry, Tensor? rest, Tensor(b!)? sums, {_WINDOW}, float? eps) -> ()",
    reference_in_place,
    lambda *arguments: None,
)


def max_pool(
    value: Tensor,
    kernel: Pair,
    stride: Pair | None = None,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """Max pooling in two dimensions, which leaves no indices behind: they cost more memory than the result.

    Parameters
    ----------
    value
        ``[N, C, H, W]``, float64, float32, bfloat16 or float16. Without a copy where it is contiguous or channels-last;
        the latter is quicker.
    kernel, stride, padding, dilation, ceil_mode
        As `torch.max_pool2d` has them, two numbers each, for rows and columns; `stride` None: `kernel`. The window has
        at most :data:`LARGEST_WINDOW` positions.

    Returns
    -------
    Tensor
        What ``torch.max_pool2d`` gives: NaN where a window holds one. As `value`, contiguous or channels-last.

    Raises
    ------
    PxpError
        A tensor or the window is outside what is described above.
    """
    stride = kernel if stride is None else stride
    _check("max_pool", value, kernel, stride, padding, dilation, ceil_mode)
    return _operator(value, kernel, stride, padding, dilation, ceil_mode)


def max_pool_epsilon(
    carry: Tensor,
    value: Tensor,
    rest: Tensor | None = None,
    sums: Tensor | None = None,
    *,
    kernel: Pair,
    stride: Pair | None = None,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
    eps: float | None = None,
    in_place: bool = False,
) -> Tensor:
    r"""Send the carry of a max pooling back to its winners, and do the epsilon work of the layer below.

    With ``z`` what was pooled, ``c`` the sum of the carries of all windows that a position wins, and of `rest`, what
    the transposed weights of the layer below are to be applied to is

    .. math:: s = c \, \frac{|z|}{|z| + \epsilon} .

    The first maximum of a window in reading order wins, as in PyTorch; the last NaN where there are any. ``c`` is
    summed in float32 (float64 for float64 tensors) and never rounded or written. The same input gives the same bits,
    whatever the number of threads.

    Parameters
    ----------
    carry
        ``[N, C, OH, OW]``, of the pooling's output.
    value
        ``z``, ``[N, C, H, W]``, of the dtype of `carry` (float64, float32, bfloat16 or float16).
    rest
        Shape and dtype of `value`: the carry from others who read it; None for 0.
    sums
        ``[2, N, C]``, float32 (float64 for float64), the last stride 1: usually a slice of a table of all units. The
        relevance ``c z`` of every channel, summed over its positions, is added: signed in row 0, absolute in row 1.
    kernel, stride, padding, dilation, ceil_mode
        Those of :func:`max_pool`.
    eps
        The stabilizer, in the units of `value`, not negative. The factor is 0 at ``z = 0``, also for ``eps = 0``. None
        for the vector-Jacobian product alone, ``c``.
    in_place
        Write over `value`, no two of whose elements may share memory then.

    Returns
    -------
    Tensor
        ``s``: `value` itself where it is written over, else a new tensor, contiguous or channels-last as `value` is.

    Raises
    ------
    PxpError
        A tensor or the window is outside what is described above.
    """
    name = "max_pool_epsilon"
    stride = kernel if stride is None else stride
    window = kernel, stride, padding, dilation, ceil_mode
    _check(name, value, *window)
    pooled = fake(value.to("meta"), *window).shape
    for what, tensor, shape in (("carry", carry, pooled), ("rest", rest, value.shape)):
        if tensor is not None and (tensor.shape, tensor.dtype, tensor.device) != (shape, value.dtype, value.device):
            raise PxpError(
                f"{name}: {what} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; for this value and window "
                f"pass {value.dtype} {tuple(shape)} on {value.device}"
            )
    if eps is not None and not eps >= 0:
        raise PxpError(f"{name}: eps is {eps}; pass a number that is not negative, or None for no stabilizer")
    if sums is not None:
        shape, dtype = (2, *value.shape[:2]), compute_dtype(value.dtype)
        if tuple(sums.shape) != shape or sums.dtype != dtype or sums.device != value.device:
            raise PxpError(
                f"{name}: sums is {sums.dtype} {tuple(sums.shape)} on {sums.device}; "
                f"pass {dtype} {shape} on {value.device}, or a slice of a bigger table"
            )
        if sums.shape[-1] > 1 and sums.stride(-1) != 1:
            raise PxpError(f"{name}: sums has strides {sums.stride()}; pass a table whose last stride is 1")
        check_apart(name, "sums", sums)
    if not in_place:
        return _epsilon(carry, value, rest, sums, *window, eps)
    check_apart(name, "value", value)
    _in_place(value, carry, rest, sums, *window, eps)
    return value


def _check(
    name: str, value: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> None:
    if value.dim() != 4 or not value.is_floating_point():
        raise PxpError(
            f"{name}: value is {value.dtype} {tuple(value.shape)}; pass a floating-point tensor [N, C, H, W]"
        )
    window = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    for what, pair in window.items():
        least = 0 if what == "padding" else 1
        if len(pair) != 2 or min(pair) < least:
            raise PxpError(f"{name}: {what} is {tuple(pair)}; pass two numbers, {least} at least")
    if kernel[0] * kernel[1] > LARGEST_WINDOW:
        raise PxpError(f"{name}: a window of {tuple(kernel)} is too large; use torch.max_pool2d for such")
    for size, axis in zip(value.shape[2:], zip(kernel, stride, padding, dilation, strict=True), strict=True):
        k, _, p, d = axis
        if 2 * p > k or (p and d > size):
            raise PxpError(
                f"{name}: a window of {k} positions, {d} apart, may lie altogether in a padding of {p} around {size} "
                "rows or columns; pad by half the kernel at most, and dilate by no more than there are"
            )
        if _pooled_size(size, *axis, ceil_mode) < 1:
            raise PxpError(
                f"{name}: nothing is left of {size} rows or columns under a window that reaches {d * (k - 1) + 1}; "
                "pass larger images"
            )
