"""Which units go together: the filters of a residual stage that write the same channel, for instance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..units import UnitGroup
from .labels import KEPT
from .removable import Member, classes_of, plan_of, uneven

if TYPE_CHECKING:
    from ..slim import Slimmer

_SAMPLES = 3


def coupled(slimmer: Slimmer, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """For each group the class of each of its units, int64 ``[count]``; -1 where it cannot even go as a whole.

    A unit that nothing is coupled to is a class of its own. Classes that hold units of the same groups behave alike, so
    it is tried with a few of each sort, many at a time, as long as no layer loses more than half of its units.
    """
    found = [classes_of(slimmer, group) for group in groups]
    held: dict[int, list[Member]] = defaultdict(list)
    for position, of_units in enumerate(found):
        for unit, own in enumerate(of_units):
            if len(own) == 1 and own[0] != int(slimmer.coupling.roots[KEPT]):
                held[own[0]].append((position, unit))
    if not slimmer.cuts_heads:
        held = {one: members for one, members in held.items() if groups[members[0][0]].kind != "head"}
    sorts: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for one, members in held.items():
        sorts[tuple(position for position, _ in members)].append(one)
    waiting = [(sort, one) for sort, classes in sorts.items() for one in classes[:_SAMPLES]]
    goes = dict.fromkeys(sorts, True)
    while waiting:
        chosen, later, gone = [], [], [0] * len(groups)
        for sort, one in waiting:
            fits = all(gone[p] + sort.count(p) <= max(1, groups[p].count // 2) for p in set(sort))
            (chosen if fits or not chosen else later).append((sort, one))
            if chosen[-1] == (sort, one):
                for position in sort:
                    gone[position] += 1
        removal = uneven(slimmer, plan_of(groups, [member for _, one in chosen for member in held[one]]))
        for sort, one in chosen:
            goes[sort] &= bool(removal.removed[one])
        waiting = later
    result = {group.name: torch.full((group.count,), -1) for group in groups}
    for one, members in held.items():
        if goes[tuple(position for position, _ in members)]:
            for position, unit in members:
                result[groups[position].name][unit] = one
    return result
