"""Layers whose input gradient and the epsilon pass of the layer below are one kernel, on a GPU.

The product then ends with that pass, in registers: the carry between the two is never written. Whether this is quicker
than PyTorch's own product followed by the pass over memory is decided here, in one place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, fx

from .. import ops
from .carry import Pending
from .layers import Convolution, ConvolutionProduct, Geometry, Linear, LinearProduct

# The longest sums for which the fused product is taken, by compute capability. Its tensor-core instructions are those
# of capability 8; later generations have quicker ones, which PyTorch uses, so that a pass over memory saved no longer
# makes up for a slower product once the sums are long. Estimated from the published rates of the instructions and of
# memory, not measured.
LONGEST_SUM = {8: None, 9: 768, 10: 384, 12: None}
# Groups narrower than this leave most of a tensor-core tile empty; cuDNN has kernels for them.
NARROWEST_GROUP = 16
# PyTorch's switches between float32 and TF32.
CONVOLUTION, MATMUL = torch.backends.cudnn.conv, torch.backends.cuda.matmul


class Policy:
    """Which products are fused.

    Parameters
    ----------
    device, dtype
        Of the computation.
    exact
        No TF32.
    wanted
        True and False decide for all; None: as described in this module.

    Attributes
    ----------
    tf32
        Whether PyTorch's own products of float32 tensors are TF32, for convolutions (True) and linear layers (False).
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, exact: bool, wanted: bool | None) -> None:
        self.dtype, self.wanted = dtype, wanted
        single = dtype == torch.float32 and not exact
        self.tf32 = {True: single and _rounds(CONVOLUTION), False: single and _rounds(MATMUL)}
        self.cuda = device.type == "cuda"
        self.longest: int | None = 0
        if self.cuda and dtype != torch.float64:
            self.longest = LONGEST_SUM.get(torch.cuda.get_device_capability(device)[0], 0)

    @property
    def anything(self) -> bool:
        """Whether some product may be fused."""
        return self.cuda if self.wanted is None else self.wanted

    def fuses(self, terms: int, features: int, channels: int, convolution: bool) -> bool:
        """Whether the product from a group's `features` to its `channels`, of `terms` terms each, is fused."""
        if self.wanted is not None:
            return self.wanted
        if not self.cuda or self.dtype == torch.float32 and not self.tf32[convolution]:
            return False
        pack = 16 // self.dtype.itemsize  # elements that tensor cores are fed with at a time
        fits = channels >= NARROWEST_GROUP and channels % pack == features % pack == 0
        return fits and (self.longest is None or terms <= self.longest)


class FusedLinear(Linear):
    """A linear layer whose transposed product ends with the epsilon pass of the layer below.

    `shares` is what attention's split leaves of each feature's carry, where the weight takes care of it.
    """

    def __init__(self, node: fx.Node, eps: float, activation: fx.Node | None, needs_input: bool, policy: Policy):
        super().__init__(node, eps, activation, needs_input)
        self.policy = policy
        self.shares: Tensor | None = None
        self.shared: Tensor | None = None

    def share(self, shares: Tensor, weight: Tensor) -> None:
        """Multiply the rows of the weight on the way back with `shares`."""
        self.shares = shares
        self.shared = (weight.double() * shares.to(weight.device).unsqueeze(1)).to(weight.dtype)

    def transposed(self, scaled: Tensor, weight: Tensor, shape: torch.Size) -> Pending:
        weight = weight if self.shared is None else self.shared
        if not self.policy.fuses(weight.shape[0], *weight.shape, convolution=False):
            return super().transposed(scaled, weight, shape)
        return FusedLinearProduct(scaled, weight, self.policy.tf32[False])


class FusedLinearProduct(LinearProduct):
    """``W^T s`` of a linear layer, with what becomes of it."""

    def __init__(self, scaled: Tensor, weight: Tensor, tf32: bool) -> None:
        super().__init__(scaled, weight)
        self.tf32 = tf32

    def scaled(
        self, value: Tensor, eps: float, *, unit_dim: int = 1, sums: Tensor | None = None, over: bool = False, **layer
    ) -> Tensor:
        if value.shape[:-1] != self.scaled_output.shape[:-1] or not (sums is None or unit_dim in (-1, value.dim() - 1)):
            return super().scaled(value, eps, unit_dim=unit_dim, sums=sums, over=over, **layer)
        rest = self.rest.take()[0] if self.rest is not None else None
        source = self.scaled_output.contiguous()
        return ops.linear_epsilon(source, self.weight, value, rest, sums=sums, eps=eps, tf32=self.tf32, **layer)


class FusedConvolution(Convolution):
    """A convolution whose input gradient ends with the epsilon pass of the layer below."""

    def __init__(self, node: fx.Node, eps: float, activation: fx.Node | None, needs_input: bool, policy: Policy):
        super().__init__(node, eps, activation, needs_input)
        self.policy = policy

    def transposed(self, scaled: Tensor, weight: Tensor, shape: torch.Size) -> Pending:
        geometry = self.geometry
        features = weight.shape[0] // geometry.groups
        terms = features * weight[0, 0].numel()
        if geometry.rank != 2 or isinstance(geometry.padding, str):
            return super().transposed(scaled, weight, shape)
        if not self.policy.fuses(terms, features, weight.shape[1], convolution=True):
            return super().transposed(scaled, weight, shape)
        return FusedConvolutionProduct(scaled, weight, shape, geometry, self.policy.tf32[True])


class FusedConvolutionProduct(ConvolutionProduct):
    """``W^T s`` of a convolution, with what becomes of it."""

    def __init__(self, scaled: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry, tf32: bool) -> None:
        super().__init__(scaled, weight, shape, geometry)
        self.tf32 = tf32

    def scaled(
        self, value: Tensor, eps: float, *, activation: str = "identity", sums: Tensor | None = None, **layer
    ) -> Tensor:
        by_channel = layer.get("unit_dim", 1) == 1 and not layer.get("stabilized_sums", False)
        if value.shape != self.shape or sums is not None and not by_channel:
            return super().scaled(value, eps, activation=activation, sums=sums, **layer)
        rest = self.rest.take()[0] if self.rest is not None else None
        geometry = self.geometry
        return ops.convolution_epsilon(
            self.scaled_output,
            self.weight,
            value,
            rest,
            sums=sums,
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            groups=geometry.groups,
            eps=eps,
            activation=activation,
            tf32=self.tf32,
        )


def _rounds(setting: object) -> bool:
    """Whether a switch of PyTorch's, or those above it where it leaves the matter open, allows TF32."""
    found = setting.fp32_precision
    if found == "none" and setting is CONVOLUTION:
        found = torch.backends.cudnn.fp32_precision
    return (torch.backends.fp32_precision if found == "none" else found) == "tf32"


@contextlib.contextmanager
def reproducible(device: torch.device, exact: bool) -> Iterator[None]:
    """Let cuDNN give the same bits every time, and round no factor to TF32 where `exact`."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    precisions = [(setting, setting.fp32_precision) for setting in (CONVOLUTION, MATMUL) if exact]
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        for setting, _ in precisions:
            setting.fp32_precision = "ieee"
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        for setting, precision in precisions:
            setting.fp32_precision = precision
