"""Layers by oneDNN's own operators, on a CPU: weights are brought into its layout once instead of in every call.

Input gradients run as convolutions too, of mirrored and transposed weights. The ReLU behind a layer is part of the
layer, and makes 0 of NaN. Numbers are those of ATen's calls of oneDNN, bit for bit; for float32
linear layers, where ATen takes another library, they are sums in another order, in half the time on some CPUs.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

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

    def pack(self) -> None:
        geometry, source = self.geometry, self.shape(self.node.args[0])
        sizes = (geometry.padding, geometry.stride, geometry.dilation, geometry.groups)
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *sizes, source)
        self.kernel = list(self.weight.shape[2:])
        if self.needs_input:
            self.way_back = way_back(geometry, self.kernel)
            self.packed_back = self.way_back.pack(self.weight, geometry, source, self.shape(self.node))

    def forward(self, run: Run) -> tuple[object, object]:
        if self.name != "relu":
            return super().forward(run)
        source, (weight, bias) = run.env[self.node.args[0]], self.parameters(run)
        z = self._convolve(source, bias, "relu")
        return z, self.keep(z, weight, source)

    def product(self, source: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return self._convolve(source, bias, "none")

    def _convolve(self, source: Tensor, bias: Tensor | None, then: str) -> Tensor:
        geometry = self.geometry
        return _convolve(source, self.packed, geometry, geometry.padding, geometry.stride, bias, then)

    def transposed(self, scaled: Tensor, weight: Tensor | None, shape: torch.Size) -> Pending:
        return self.way_back(scaled, self.packed_back, shape, self.geometry, self.kernel)


class PackedProduct(ConvolutionProduct):
    """A convolution's input gradient, from a packed weight."""

    def __init__(
        self, scaled: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry, kernel: list[int]
    ) -> None:
        super().__init__(scaled, weight, shape, geometry)
        self.kernel = kernel

    @staticmethod
    @abc.abstractmethod
    def pack(weight: Tensor, geometry: Geometry, source: list[int], output: list[int]) -> Tensor:
        """The convolution's weight, packed for the way back from `output` to `source`, shapes of a usual batch."""


class MirroredProduct(PackedProduct):
    """Of stride 1: the convolution with the mirrored weight."""

    @staticmethod
    def pack(weight: Tensor, geometry: Geometry, source: list[int], output: list[int]) -> Tensor:
        sizes = (mirrored_padding(geometry, weight.shape[2:]), [1, 1], geometry.dilation, geometry.groups)
        return torch.ops.mkldnn._reorder_convolution_weight(mirrored_weight(weight, geometry.groups), *sizes, output)

    def make(self) -> Tensor:
        padding = mirrored_padding(self.geometry, self.kernel)
        return _convolve(self.scaled_output, self.weight, self.geometry, padding)

    def make_onto(self, rest: Tensor) -> Tensor:
        if not rest.is_contiguous(memory_format=torch.channels_last):
            return super().make_onto(rest)
        padding = mirrored_padding(self.geometry, self.kernel)
        sizes = (padding, [1, 1], self.geometry.dilation, self.geometry.groups)
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            rest, self.scaled_output, self.weight, None, *sizes, "add", 1.0, None, [], None
        )


class ScatteredProduct(PackedProduct):
    """Of a strided 1x1 kernel: what was stepped over receives nothing."""

    @staticmethod
    def pack(weight: Tensor, geometry: Geometry, source: list[int], output: list[int]) -> Tensor:
        sizes = ([0, 0], [1, 1], [1, 1], geometry.groups)
        return torch.ops.mkldnn._reorder_convolution_weight(mirrored_weight(weight, geometry.groups), *sizes, output)

    def make(self) -> Tensor:
        zeros = self.scaled_output.new_empty(self.shape).contiguous(memory_format=torch.channels_last).zero_()
        self._seen(zeros).copy_(self._product())
        return zeros

    def make_onto(self, rest: Tensor) -> Tensor:
        self._seen(rest).add_(self._product())
        return rest

    def _seen(self, tensor: Tensor) -> Tensor:
        rows, columns = self.geometry.stride
        return tensor[:, :, ::rows, ::columns]

    def _product(self) -> Tensor:
        return _convolve(self.scaled_output, self.weight, self.geometry, [0, 0])


class TransposedProduct(PackedProduct):
    """Of any other: the transposed convolution."""

    @staticmethod
    def pack(weight: Tensor, geometry: Geometry, source: list[int], output: list[int]) -> Tensor:
        sizes = transposed_sizes(geometry, weight.shape[2:], source, output)
        return torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *sizes, output)

    def make(self) -> Tensor:
        sizes = transposed_sizes(self.geometry, self.kernel, self.shape, self.scaled_output.shape)
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            self.scaled_output, self.weight, None, *sizes, "none", [], ""
        )


def way_back(geometry: Geometry, kernel: list[int]) -> type[PackedProduct]:
    """Which of the three takes a convolution of a kernel's size back."""
    if geometry.stride == [1, 1] and min(mirrored_padding(geometry, kernel)) >= 0:
        return MirroredProduct
    return ScatteredProduct if kernel == [1, 1] and geometry.padding == [0, 0] else TransposedProduct


def mirrored_padding(geometry: Geometry, kernel: Sequence[int]) -> list[int]:
    """The padding with which the mirrored convolution gives the input gradient; negative: none does."""
    pairs = zip(kernel, geometry.padding, geometry.dilation, strict=True)
    return [dilation * (size - 1) - before for size, before, dilation in pairs]


def transposed_sizes(geometry: Geometry, kernel: Sequence[int], source: Sequence[int], output: Sequence[int]) -> tuple:
    """What the transposed convolution from `output` to `source` takes behind its weight."""
    mirrored = mirrored_padding(geometry, kernel)
    sides = zip(source[2:], output[2:], geometry.stride, geometry.padding, mirrored, strict=True)
    # Rows at the end that the convolution did not reach.
    missed = [wanted - ((found - 1) * stride - before + after + 1) for wanted, found, stride, before, after in sides]
    return geometry.padding, missed, geometry.stride, geometry.dilation, geometry.groups


def mirrored_weight(weight: Tensor, groups: int) -> Tensor:
    """``[K, C / groups, R, S]`` turned around and transposed within each group: ``[C, K / groups, R, S]``."""
    turned = weight.flip(2, 3).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return turned.contiguous(memory_format=torch.channels_last)


def _convolve(
    source: Tensor,
    weight: Tensor,
    geometry: Geometry,
    padding: list[int],
    stride: Sequence[int] = (1, 1),
    bias: Tensor | None = None,
    then: str = "none",
) -> Tensor:
    sizes = (padding, stride, geometry.dilation, geometry.groups)
    return torch.ops.mkldnn._convolution_pointwise(source, weight, bias, *sizes, then, [], "")


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
