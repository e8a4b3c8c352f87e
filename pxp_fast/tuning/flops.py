"""How much of a network's work a plan leaves."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..errors import PlanError
from ..lrp.capture import evaluating
from ..masks import masked
from ..plan import Plan

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_GRID = 100


class Flops:
    """The fraction of a network's FLOPs (of convolutions and matrix products) that a plan leaves.

    A convolution or linear layer costs as much as it has outputs that are not removed, times inputs that are not zero
    because of removals above; an attention costs as much as it has heads left. Which inputs are zero is looked up on
    images, so a channel that happens to be silent on all of them counts as gone once something above it is.

    Parameters
    ----------
    images
        ``[N, C, H, W]``, some dozens.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images
        self.modules = dict(model.named_modules())
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), _plainly(model):
            model(images[:1])
        root = type(model).__name__
        totals = {
            name.removeprefix(root).removeprefix("."): sum(by_operator.values())
            for name, by_operator in counter.get_flop_counts().items()
            if name != "Global"
        }
        children = {name: [f"{name}.{child}" if name else child for child, _ in module.named_children()]
                    for name, module in self.modules.items()}  # fmt: skip
        self.own = {name: total - sum(totals.get(c, 0) for c in children[name]) for name, total in totals.items()}
        self.total = sum(self.own.values())
        self.silent = {name: ~live for name, live in self._live_inputs().items()}

    def fraction(self, plan: Plan) -> float:
        """In [0, 1]."""
        heads = {group.name: 1 - len(group.removed) / group.count for group in plan.groups if group.kind == "head"}
        with masked(self.model, plan):
            live = self._live_inputs()
            left = 0.0
            for name, flops in self.own.items():
                attention = next((part for part in _prefixes(name) if part in heads), None)
                if attention is not None:
                    left += flops * heads[attention]
                elif name in live:
                    left += flops * _share(self.modules[name], live[name] | self.silent[name])
                else:
                    left += flops
        return left / self.total

    def rate(self, plan_at: Callable[[float], Plan], target: float) -> float:
        """The lowest rate, in hundredths, at which `plan_at` leaves at most `target` of the FLOPs.

        Raises
        ------
        PlanError
            Not even the highest rate does.
        """
        low, high = 0, _GRID - 1
        if self.fraction(plan_at(high / _GRID)) > target:
            raise PlanError(f"removing {high / _GRID:.0%} of the units leaves more than {target:.0%} of the FLOPs; ask "
                            "for a larger fraction")  # fmt: skip
        while low < high:
            middle = (low + high) // 2
            if self.fraction(plan_at(middle / _GRID)) <= target:
                high = middle
            else:
                low = middle + 1
        return low / _GRID

    def _live_inputs(self) -> dict[str, Tensor]:
        """For each layer that is run, which of its inputs ``[I]`` are not zero on all images."""
        live: dict[str, Tensor] = {}

        def look(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].movedim(1, -1) if not isinstance(layer, nn.Linear) else inputs[0]
            found = (values.flatten(0, -2) != 0).any(0)
            live[name] = live[name] | found if name in live else found

        layers = {name: module for name, module in self.modules.items() if isinstance(module, _LAYERS)}
        handles = [layer.register_forward_pre_hook(functools.partial(look, name)) for name, layer in layers.items()]
        try:
            with _plainly(self.model):
                self.model(self.images)
        finally:
            for handle in handles:
                handle.remove()
        return live


def _share(layer: nn.Module, inputs: Tensor) -> float:
    """The share of a layer's weights that join an output that is left with an input that is."""
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.detach().abs().flatten(1).unflatten(1, (layer.weight.shape[1], -1)).amax(2)
    weight = weight.unflatten(0, (groups, -1))
    outputs = weight.amax(2) > 0
    if layer.bias is not None:
        outputs |= layer.bias.detach().view_as(outputs) != 0
    inputs = inputs.view(groups, -1) & (weight.amax(1) > 0)
    return int((outputs.sum(1) * inputs.sum(1)).sum()) / weight.numel()


def _prefixes(name: str) -> list[str]:
    """A module's name and those of the modules that it is in."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


@contextlib.contextmanager
def _plainly(model: nn.Module) -> Iterator[None]:
    """For a forward pass in eval mode and without gradients."""
    with evaluating(model), torch.no_grad():
        yield
