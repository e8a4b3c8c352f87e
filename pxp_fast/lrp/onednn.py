"""Layers by oneDNN's own operators, on a CPU: weights are brought into its layout once instead of in every call.

A stride-1 convolution's input gradient runs as the convolution with the mirrored, transposed weight. The ReLU behind a
layer is part of the layer. Numbers are those of ATen's calls of oneDNN, bit for bit; for float32 linear layers, where
ATen takes another library, they are sums in another order, in half the time on some CPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .carry import Pending
from .graph import argument
from .layers import Convolution, ConvolutionProduct, Geometry, Linear, LinearProduct
from .rules import Run

# Without oneDNN PyTorch has no such operators.
AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators take tensors of this kind here."""
    if not AVAILABLE or device.type != "cpu":
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packs(node: fx.Node) -> bool:
    """Whether a convolution can run on packed weights."""
    return node.meta["val"].dim() == 4 and not isinstance(argument(node, "padding"), str)


class PackedConvolution(Convolution):
    """A convolution on weights in oneDNN's layout, which are made from the graph's at the first batch."""

    packed: Tensor | None = None
    packed_back: Tensor | None = None

    def forward(self, run: Run) -> tuple[object, object]:
        if self.packed is None:
            source, weight = run.env[self.node.args[0]], run.env[self.node.args[1]]
            sizes = (self.geometry.padding, self.geometry.stride, self.geometry.dilation, self.geometry.groups)
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *sizes, list(source.shape))
        if self.name != "relu":
            return super().forward(run)
        source, bias = run.env[self.node.args[0]], run.value(argument(self.node, "bias"))
        z = self._convolve(source, bias, "relu")
        return z, self.keep(z, run.env[self.node.args[1]], source)

    def product(self, source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._convolve(source, bias, "none")

    def _convolve(self, source: Tensor, bias: Tensor | None, then: str) -> Tensor:
        return _pointwise(source, self.packed, bias, self.geometry, self.geometry.padding, then)

    def transposed(self, scaled: Tensor, weight: Tensor, shape: torch.Size) -> Pending:
        mirrored = mirrored_padding(self.geometry, weight.shape)
        if mirrored is None:
            return super().transposed(scaled, weight, shape)
        if self.packed_back is None:
            sizes = (mirrored, [1, 1], self.geometry.dilation, self.geometry.groups)
            turned = mirrored_weight(weight, self.geometry.groups)
            self.packed_back = torch.ops.mkldnn._reorder_convolution_weight(turned, *sizes, list(scaled.shape))
        return MirroredProduct(scaled, self.packed_back, shape, self.geometry, mirrored)


class MirroredProduct(ConvolutionProduct):
    """A stride-1 convolution's input gradient as a convolution."""

    def __init__(
        self, scaled: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry, padding: list[int]
    ) -> None:
        super().__init__(scaled, weight, shape, geometry)
        self.padding = padding

    def make(self) -> Tensor:
        return _pointwise(self.scaled_output, self.weight, None, self.geometry, self.padding, "none")

    def make_onto(self, rest: Tensor) -> Tensor:
        if not rest.is_contiguous(memory_format=torch.channels_last):
            return super().make_onto(rest)
        sizes = (self.padding, [1, 1], self.geometry.dilation, self.geometry.groups)
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            rest, self.scaled_output, self.weight, None, *sizes, "add", 1.0, None, [], None
        )


def mirrored_padding(geometry: Geometry, shape: torch.Size) -> list[int] | None:
    """The padding with which the mirrored convolution gives the input gradient; None if there is none."""
    pairs = zip(shape[2:], geometry.padding, geometry.dilation, strict=True)
    padding = [dilation * (size - 1) - before for size, before, dilation in pairs]
    return padding if geometry.stride == [1, 1] and min(padding) >= 0 else None


def mirrored_weight(weight: Tensor, groups: int) -> Tensor:
    """``[K, C / groups, R, S]`` turned around and transposed within each group: ``[C, K / groups, R, S]``."""
    turned = weight.flip(2, 3).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return turned.contiguous(memory_format=torch.channels_last)


def _pointwise(
    source: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, padding: list[int], then: str
) -> Tensor:
    stride = geometry.stride if padding is geometry.padding else [1, 1]
    return torch.ops.mkldnn._convolution_pointwise(
        source, weight, bias, padding, stride, geometry.dilation, geometry.groups, then, [], ""
    )


class OneLinear(Linear):
    """A linear layer by oneDNN; weights of reduced precision, which are the program's own, are packed."""

    packed: Tensor | None = None
    packed_back: Tensor | None = None

    def product(self, source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        source = source.contiguous()
        if weight.dtype == torch.float32:
            return _linear(source, weight, bias)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, source.numel() // source.shape[-1])
        return _linear(source, self.packed, bias)

    def transposed(self, scaled: Tensor, weight: Tensor, shape: torch.Size) -> Pending:
        weight = weight.t()
        if weight.dtype != torch.float32:
            if self.packed_back is None:
                rows = scaled.numel() // scaled.shape[-1]
                self.packed_back = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
            weight = self.packed_back
        return OneLinearProduct(scaled, weight)


class OneLinearProduct(LinearProduct):
    """``W^T s`` by oneDNN, from the transposed weight."""

    def make(self) -> Tensor:
        return _linear(self.scaled_output.contiguous(), self.weight, None)


def _linear(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")
