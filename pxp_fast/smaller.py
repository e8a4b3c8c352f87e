"""The step of a run that makes the network smaller, and what it records of that."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from .errors import CaptureError, SlimError
from .evaluate import Evaluation
from .plan import Plan
from .records import Hits, LayerRecord, PairedRecord, SlimmedRecord
from .repair import Repair
from .slim import slim

_COMPARED = 8


def smaller(
    network: nn.Module, plan: Plan, loader: Iterable[tuple[Tensor, Tensor]], repair: Repair | None = None
) -> tuple[nn.Module | None, SlimmedRecord]:
    """The network without what the plan removes; None, and why, where it cannot be slimmed.

    With a repair it is the repaired network that becomes smaller.
    Logits are compared on the first images of `loader`.
    """
    parameter = next(network.parameters())
    images = next(iter(loader))[0][:_COMPARED].to(parameter)
    try:
        model = slim(network, plan, images, repair)
    except (SlimError, CaptureError) as error:
        return None, SlimmedRecord(problem=" ".join(str(error).split()), zeros=plan.removed_count)
    found = model.pxp_slim
    return model, SlimmedRecord(cut=found.cut, zeros=found.zeros, difference=found.difference, compared=len(images))


def layers(plan: Plan, model: nn.Module | None) -> tuple[LayerRecord, ...]:
    """What becomes of each layer's units, in the plan's order; `model` is the smaller network, None: only masked."""
    cut = [None] * len(plan.groups) if model is None else [layer.cut for layer in model.pxp_slim.layers]
    return tuple(
        LayerRecord(name=group.name, kind=group.kind, count=group.count, removed=len(group.removed), cut=gone)
        for group, gone in zip(plan.groups, cut, strict=True)
    )


def paired(before: Evaluation, after: Evaluation) -> PairedRecord:
    """The images that judge, by what became of each."""
    was, now = before.right, after.right
    return PairedRecord(
        both=int((was & now).sum()),
        lost=int((was & ~now).sum()),
        gained=int((~was & now).sum()),
        neither=int((~was & ~now).sum()),
    )


def hits(found: Evaluation) -> Hits:
    """An evaluation's counts."""
    return Hits(correct=found.correct, total=found.total)
