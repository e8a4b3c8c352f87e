"""What is done to a captured classifier once, before the first batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from .fold import CONVOLUTIONS, fold_batch_norm, hoist_reshapes, prepare_for_dtype
from .graph import Captured
from .tokens import keep_read_tokens


class Prepared(NamedTuple):
    """A classifier's values that do not depend on the images, and the form of those that do.

    Attributes
    ----------
    constants
        Value of every constant node, on the device and in the dtype of the computation.
    layout
        Of images and of whatever convolutions yield.
    quick
        Whether the quickest kernels may be taken, which round less well than autograd on the model itself.
    """

    constants: dict[fx.Node, object]
    layout: torch.memory_format
    quick: bool


def prepare(
    captured: Captured, dtype: torch.dtype, device: torch.device, *, exact: bool = False, every_token: bool = False
) -> Prepared:
    """Merge batch norms, leave out what the classifier does not read, cast and lay out the weights.

    The capture is rewritten, and gives its constants away. `exact` asks for autograd's rounding in float32;
    `every_token` keeps the tokens that the classifier does not read.
    """
    with torch.inference_mode(False):  # tensors made in it could not be differentiated
        fold_batch_norm(captured)
        hoist_reshapes(captured)
        if not every_token:
            keep_read_tokens(captured)
        captured.eliminate_dead()
        prepare_for_dtype(captured, dtype, device)
        quick = dtype != torch.float64 and not (exact and dtype == torch.float32)
        pictures = captured.images.meta["val"].dim() == 4 and any(n.target in CONVOLUTIONS for n in captured.nodes())
        layout = torch.channels_last if quick and pictures else torch.contiguous_format
        constants = {n: _place(n, value, dtype, device, layout) for n, value in captured.constants.items()}
    captured.constants = dict.fromkeys(captured.constants)  # these copies are enough
    return Prepared(constants, layout, quick)


def _place(node: fx.Node, value: object, dtype: torch.dtype, device: torch.device, layout: torch.memory_format):
    if not isinstance(value, Tensor):
        return value
    value = ordinary(value).detach().to(device, dtype if value.is_floating_point() else None)
    convolves = any(user.target in CONVOLUTIONS and user.args[1] is node for user in node.users)
    # Either layout would otherwise spread from the model's weights through the whole pass.
    layout = layout if value.dim() == 4 else torch.contiguous_format
    return value.contiguous(memory_format=layout) if convolves else value


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one from inference mode, which autograd would not take."""
    return tensor.clone() if tensor.is_inference() else tensor


def last_uses(steps: Sequence[tuple[Iterable[fx.Node], fx.Node]], kept: Iterable[fx.Node]) -> list[list[fx.Node]]:
    """For each step, given what it reads and what it makes, the values that no later step reads; never those `kept`."""
    seen = set(kept)
    release: list[list[fx.Node]] = []
    for reads, makes in reversed(steps):
        dead = [node for node in dict.fromkeys((makes, *reads)) if node not in seen]
        seen.update(dead)
        release.append(dead)
    return release[::-1]
