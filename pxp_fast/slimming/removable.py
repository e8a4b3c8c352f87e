"""Which units can be cut out alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import SlimError
from ..plan import Plan, PlannedGroup
from ..units import UnitGroup
from .labels import KEPT
from .removal import Removal

if TYPE_CHECKING:
    from ..slim import Slimmer

_SAMPLES = 3
Member = tuple[int, int]
"""Position of a group, and of a unit in it."""


def removable(slimmer: Slimmer, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """For each group the units that can be cut out alone, bool ``[count]``.

    Classes that hold units of the same groups behave alike. So for every combination of groups that share classes, and
    each of its groups, a few of these classes lose that group's unit, whatever else they hold keeping its own: the unit
    can go alone where the network then can do without the class. Many classes are tried at a time, as long as no
    layer loses more than half of its units.
    """
    classes = [classes_of(slimmer, group) for group in groups]
    held: dict[int, list[Member]] = defaultdict(list)
    for position, of_units in enumerate(classes):
        for unit, own in enumerate(of_units):
            for one in own:
                held[one].append((position, unit))
    combined: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for one, members in held.items():
        if one != int(slimmer.coupling.roots[KEPT]):
            combined[tuple(position for position, _ in members)].append(one)
    # Of a class with two units of one layer neither can go alone: what reads it gets the other.
    combined = {together: found for together, found in combined.items() if len(set(together)) == len(together)}
    waiting = [
        (together, index, found[(turn + index) % len(found)])
        for together, found in combined.items()
        for index in range(len(together))
        for turn in range(min(_SAMPLES, len(found)))
        if groups[together[index]].count > 1
    ]
    if any(group.kind == "head" for group in groups) and not slimmer.cuts_heads:
        waiting = [trial for trial in waiting if groups[trial[0][trial[1]]].kind != "head"]
    alone: dict[tuple[tuple[int, ...], int], bool] = {}
    while waiting:
        chosen, waiting = _next_round(waiting, held, groups)
        plan = plan_of(groups, [held[one][index] for _, index, one in chosen])
        removal = uneven(slimmer, plan)
        for together, index, one in chosen:
            alone[together, index] = alone.get((together, index), True) and bool(removal.removed[one])
    result = {group.name: torch.zeros(group.count, dtype=torch.bool) for group in groups}
    for position, (group, of_units) in enumerate(zip(groups, classes, strict=True)):
        for unit, own in enumerate(of_units):
            keys = [(tuple(p for p, _ in held[one]), [p for p, _ in held[one]].index(position)) for one in own]
            result[group.name][unit] = bool(keys) and all(alone.get(key, False) for key in keys)
    return result


def cuts_heads(slimmer: Slimmer, groups: Sequence[UnitGroup]) -> bool:
    """Whether heads can be cut out of the model: it is tried with one of every attention that has several."""
    members = [(index, 0) for index, group in enumerate(groups) if group.kind == "head" and group.count > 1]
    if not members:
        return False
    try:
        return slimmer.slim(plan_of(groups, members)).pxp_slim.cut > 0
    except SlimError:
        return False


def parts(slimmer: Slimmer, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """For each group whose units a grouped convolution reads or makes, the convolution's group of each unit.

    Slimming leaves every group of a convolution as many channels. Where both sides of a layer's units are grouped, the
    finer groups count.
    """
    found: dict[str, Tensor] = {}
    tables = list(_tables(slimmer))
    for group in groups:
        classes = [own[0] if len(own) == 1 else -1 for own in classes_of(slimmer, group)]
        for part_of in tables:
            own = torch.tensor([part_of.get(one, -1) for one in classes])
            finer = group.name not in found or own.max() > found[group.name].max()
            if bool((own >= 0).all()) and finer and len(own.bincount().unique()) == 1:
                found[group.name] = own
    return found


def uneven(slimmer: Slimmer, plan: Plan) -> Removal:
    """What can be removed under a plan, whether or not it leaves the groups of convolutions as many channels each."""
    return _Uneven(slimmer.masked(plan), slimmer.coupling)


class _Uneven(Removal):
    """What can be removed, whether or not it leaves the groups of convolutions as many channels each."""

    def _balance(self, channels: Tensor, groups: int) -> None:
        pass


def classes_of(slimmer: Slimmer, group: UnitGroup) -> list[list[int]]:
    """The classes that each unit's entries are in; none where they cannot be found."""
    piece, labels = group.slices[0], slimmer.coupling.labels
    weight = next((node for node, name in slimmer.captured.parameters.items() if name == piece.parameter), None)
    entries = (labels.rows, labels.columns)[piece.dim].get(weight) if piece.dim < 2 else None
    if entries is None:
        return [[] for _ in range(group.count)]
    roots = slimmer.coupling.class_of(entries)
    if piece.index is None:
        return [list(dict.fromkeys(own)) for own in roots.view(group.count, -1).tolist()]
    return [list(dict.fromkeys(roots[list(own)].tolist())) for own in piece.index]


def _next_round(waiting: list, held: dict[int, list[Member]], groups: Sequence[UnitGroup]) -> tuple[list, list]:
    """What can be tried at once: one unit of a class, and at most half of each layer's units; and the rest."""
    chosen, later, taken = [], [], set()
    gone = [0] * len(groups)
    for trial in waiting:
        _, index, one = trial
        position, _ = held[one][index]
        if one in taken or gone[position] >= groups[position].count // 2:
            later.append(trial)
        else:
            taken.add(one)
            gone[position] += 1
            chosen.append(trial)
    return chosen, later


def plan_of(groups: Sequence[UnitGroup], members: Sequence[Member]) -> Plan:
    """That removes these units."""
    gone: dict[int, list[int]] = defaultdict(list)
    for position, unit in members:
        gone[position].append(unit)
    planned = tuple(
        PlannedGroup(
            name=groups[position].name, kind=groups[position].kind, count=groups[position].count,
            removed=tuple(dict.fromkeys(units)), slices=groups[position].slices,
        )
        for position, units in gone.items()
    )  # fmt: skip
    return Plan(model="", rate=0, groups=planned)


def _tables(slimmer: Slimmer) -> Iterator[dict[int, int]]:
    """For the inputs and outputs of each grouped convolution, the convolution's group of each class."""
    for layer in slimmer.coupling.labels.layers:
        if layer.groups > 1 and not layer.channelwise:
            for channels in (layer.inputs, layer.outputs):
                size = len(channels) // layer.groups
                classes = slimmer.coupling.class_of(channels).tolist()
                yield {one: position // size for position, one in enumerate(classes)}
