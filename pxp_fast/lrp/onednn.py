"""Layers by oneDNN's own operators, on a CPU: weights are brought into its layout once instead of in every call.

A stride-1 convolution's input gradient runs as the convolution with the mirrored, transposed weight. The ReLU behind a
layer is part of the layer, and makes 0 of NaN. Numbers are those of ATen's calls of oneDNN, bit for bit; for float32
linear layers, where ATen takes another library, they are sums in another order, in half the time on some CPUs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from .carry import Pending
from .graph import argument
from .layers import Convolution, ConvolutionProduct, Geometry, Linear, LinearProduct, Weighted
from .rules import Run

# Without oneDNN PyTorch has no such operators.
AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")

USUAL_BATCH = 8
# Entries of the largest linear weight that is packed: of a larger one (VGG's first has 10^8), two copies cost too much.
MOST_PACKED = 1 << 24


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators take tensors of this kind here."""
    if not AVAILABLE or device.type != "cpu":
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packs(node: fx.Node) -> bool:
    """Whether a convolution can run on packed weights."""
    return node.meta["val"].dim() == 4 and not isinstance(argument(node, "padding"), str)


class Packed(Weighted):
    """A layer on weights in oneDNN's layout, one for each direction.

    They are made before the first batch: made during it, they would lie between its activations and keep the memory
    around them from being used again.
    """

    weight: Tensor | None = None
    packed: Tensor | None = None
    packed_back: Tensor | None = None

    def adopt(self, constants: dict[fx.Node, Tensor]) -> None:
        """Take the weight over from the program, where no other layer shares it, and pack it."""
        node = self.node.args[1]
        self.weight = constants.pop(node) if len(node.users) == 1 else constants[node]
        self.pack()
        if self.packed is not None and (self.packed_back is not None or not self.needs_input):
            self.weight = None

    def pack(self) -> None:
        """Bring the weight into oneDNN's layout, for whichever directions that is possible and pays."""
        raise NotImplementedError

    def shape(self, node: fx.Node) -> list[int]:
        """The node's shape for a batch of a usual size: the layout hardly depends on it, and serves any."""
        batch, *rest = node.meta["val"].shape
        return [USUAL_BATCH * (batch if isinstance(batch, int) else 1), *map(int, rest)]

    def parameters(self, run: Run) -> tuple[Tensor | None, Tensor | None]:
        return self.weight, run.value(argument(self.node, "bias"))


class PackedConvolution(Packed, Convolution):
    """A convolution on packed weights."""

    mirrored: list[int] | None = None

    def pack(self) -> None:
        geometry = self.geometry
        sizes = (geometry.padding, geometry.stride, geometry.dilation, geometry.groups)
        pack = torch.ops.mkldnn._reorder_convolution_weight
        self.packed = pack(self.weight, *sizes, self.shape(self.node.args[0]))
        self.mirrored = mirrored_padding(geometry, self.weight.shape)
        if self.mirrored is not None and self.needs_input:
            sizes = (self.mirrored, [1, 1], geometry.dilation, geometry.groups)
            self.packed_back = pack(mirrored_weight(self.weight, geometry.groups), *sizes, self.shape(self.node))

    def forward(self, run: Run) -> tuple[object, object]:
        if self.name != "relu":
            return super().forward(run)
        source, (weight, bias) = run.env[self.node.args[0]], self.parameters(run)
        z = self._convolve(source, bias, "relu")
        return z, self.keep(z, weight, source)

    def product(self, source: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return self._convolve(source, bias, "none")

    def _convolve(self, source: Tensor, bias: Tensor | None, then: str) -> Tensor:
        return _pointwise(source, self.packed, bias, self.geometry, self.geometry.padding, then)

    def transposed(self, scaled: Tensor, weight: Tensor | None, shape: torch.Size) -> Pending:
        if self.packed_back is None:
            return super().transposed(scaled, weight, shape)
        return MirroredProduct(scaled, self.packed_back, shape, self.geometry, self.mirrored)


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


class OneLinear(Packed, Linear):
    """A linear layer by oneDNN; weights of reduced precision, which are the program's own, are packed."""

    def pack(self) -> None:
        if self.weight.dtype == torch.float32 or self.weight.numel() > MOST_PACKED:
            return
        *rows, _ = self.shape(self.node)
        pack = torch.ops.mkldnn._reorder_linear_weight
        self.packed = pack(self.weight, math.prod(rows))
        if self.needs_input:
            self.packed_back = pack(self.weight.t().contiguous(), math.prod(rows))

    def product(self, source: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return _linear(source.contiguous(), weight if self.packed is None else self.packed, bias)

    def transposed(self, scaled: Tensor, weight: Tensor | None, shape: torch.Size) -> Pending:
        return OneLinearProduct(scaled, weight.t() if self.packed_back is None else self.packed_back)


class OneLinearProduct(LinearProduct):
    """``W^T s`` by oneDNN, from the transposed weight."""

    def make(self) -> Tensor:
        return _linear(self.scaled_output.contiguous(), self.weight, None)


def _linear(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")
