"""Which channels of a network are the same whatever the images, and what they are.

The graph runs once with NaN for everything that depends on the images. Most operators let NaN spread by themselves;
those that multiply are told that nothing times zero is zero.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, fx

from ..lrp.fold import CONVOLUTIONS, LINEAR, VIEWS
from ..lrp.graph import ATEN, Captured, argument, packet
from ..lrp.probe import SAMPLES


@dataclasses.dataclass
class Constants:
    """What is always the same in a network.

    Attributes
    ----------
    inputs
        For every convolution and linear layer, its input channels' values ``[channels]``, NaN where they are not always
        the same, or not at every position.
    zeros
        The operators whose value is always 0.
    """

    inputs: dict[fx.Node, Tensor]
    zeros: set[fx.Node]


@torch.no_grad()
def constants_of(captured: Captured) -> Constants:
    """Run the network once on nothing that is known."""
    like = captured.images.meta["val"]
    device = next(t.device for t in captured.constants.values() if isinstance(t, Tensor))
    images = torch.full((SAMPLES, *like.shape[1:]), torch.nan, dtype=like.dtype, device=device)
    env: dict[fx.Node, object] = {**captured.constants, captured.images: images}
    found = Constants({}, set())
    remaining = {node: len(node.users) for node in captured.nodes()}
    for node in captured.nodes():
        if node.target in CONVOLUTIONS or node.target is LINEAR:
            found.inputs[node] = _by_channel(env[node.args[0]], -1 if node.target is LINEAR else 1)
        env[node] = _value(node, env)
        if isinstance(env[node], Tensor) and bool((env[node] == 0).all()):
            found.zeros.add(node)
        for source in node.all_input_nodes:
            if source in remaining:
                remaining[source] -= 1
                if not remaining[source] and source is not captured.logits:
                    del env[source]
    return found


def _by_channel(value: Tensor, dim: int) -> Tensor:
    channels = value.movedim(dim, 0).flatten(1)
    low, high = channels.aminmax(dim=1)  # NaN where there is one
    return torch.where(low == high, low, torch.nan)


def _value(node: fx.Node, env: dict[fx.Node, object]) -> object:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
    name = packet(node)
    if node.target in CONVOLUTIONS or node.target is LINEAR:
        return _weighted(node, args, kwargs)
    if name in ("matmul", "bmm"):
        return _product(node.target, *args)
    if name == "scaled_dot_product_attention":
        return _attended(node, args, env)
    if name == "batch_norm":
        return _batch_norm(node, env)
    # The strides are not those of the model's values, which a view may rely on.
    value = (ATEN.reshape.default if node.target in VIEWS else node.target)(*args, **kwargs)
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if name == "mul" and len(tensors) == 2:
        return value.masked_fill((tensors[0] == 0) | (tensors[1] == 0), 0)
    by_entry = isinstance(value, Tensor) and len(tensors) == 1 and tensors[0].shape == value.shape
    if by_entry and value.is_floating_point() and tensors[0].is_floating_point():
        return value.masked_fill(tensors[0].isnan(), torch.nan)  # some kernels clamp NaN to a number
    return value


def _weighted(node: fx.Node, args: tuple, kwargs: dict) -> Tensor:
    """A product with constant weights: what a zero is multiplied with does not matter."""
    source, weight, *rest = args
    value = node.target(source.nan_to_num(0), weight, *rest, **kwargs)
    without_bias = [None, *rest[1:]] if rest else []
    kwargs = {key: one for key, one in kwargs.items() if key != "bias"}
    reached = node.target(source.isnan().to(weight.dtype), (weight != 0).to(weight.dtype), *without_bias, **kwargs)
    return value.masked_fill(reached > 0, torch.nan)


def _product(target: object, one: Tensor, other: Tensor) -> Tensor:
    unknown = [t.isnan().to(t.dtype) for t in (one, other)]
    nonzero = [(t != 0).to(t.dtype) for t in (one, other)]  # NaN is not zero
    reached = target(unknown[0], nonzero[1]) + target(nonzero[0], unknown[1])
    return target(one.nan_to_num(0), other.nan_to_num(0)).masked_fill(reached > 0, torch.nan)


def _attended(node: fx.Node, args: tuple, env: dict[fx.Node, object]) -> Tensor:
    """Attention's weights sum to one: it yields what all values of a feature are, if they are the same."""
    query, _, value = args[:3]
    low, high = value.aminmax(dim=-2, keepdim=True)
    same = torch.where(low == high, low, torch.nan)
    return same.expand(*query.shape[:-1], value.shape[-1]).clone()


def _batch_norm(node: fx.Node, env: dict[fx.Node, object]) -> Tensor:
    source, *parts = (
        env[one] if isinstance(one := argument(node, name), fx.Node) else None
        for name in ("input", "weight", "bias", "running_mean", "running_var")
    )
    value = ATEN.batch_norm.default(source, *parts, False, 0.0, argument(node, "eps"), False)
    weight, bias = parts[:2]
    if weight is None:
        return value
    by_channel = [1, -1] + [1] * (source.dim() - 2)
    silent = (weight == 0).view(by_channel).expand_as(value)
    return torch.where(silent, 0 if bias is None else bias.view(by_channel), value)
