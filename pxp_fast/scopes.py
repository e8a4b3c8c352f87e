"""Ranking scopes: which units compete with each other for removal."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from .units import UnitGroup

SCOPES = ("kind", "global", "layer", "isomorphic")
_NUMBER = re.compile(r"\d+")


def pool_names(groups: Sequence[UnitGroup], scope: str) -> list[str]:
    """For each group the name of the pool that its units are ranked in."""
    if scope == "isomorphic":
        places = positions(group.name for group in groups)
        return [f"{group.kind} {places[group.name]}" for group in groups]
    named = {"kind": lambda group: group.kind, "global": lambda group: "", "layer": lambda group: group.name}
    return [named[scope](group) for group in groups]


def positions(names: Iterable[str]) -> dict[str, str]:
    """Each layer's position in its block: its name with the numbers that count repetitions replaced by ``*``.

    Parts of a name are told apart by dots. Where parts at one place differ only in their numbers, these count
    *repetitions* if at least two of them hold two or more layers each, and one at the same place below: so ``layer1``
    and ``layer2``, and the ``0`` and ``1`` below them, but neither ``conv1`` and ``conv2`` nor ``mlp.0`` and ``mlp.3``.
    Within a repetition all other numbers are places and stay; outside of any (``features.0``, ``features.3``) there is
    no block to have a place in, and they are replaced as well.

    Examples
    --------
    ``layer2.1.conv2`` is at ``layer*.*.conv2``, ``blocks.7.mlp.fc1`` at ``blocks.*.mlp.fc1``, ``encoder_layer_3.mlp.0``
    at ``encoder_layer_*.mlp.0``, ``s1.b2.conv2.conv`` at ``s*.b*.conv2.conv``.

    References
    ----------
    Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024: importance is comparable only among sub-structures of
    the same shape. They compare graphs; this compares names.
    """
    split = {name: name.split(".") for name in names}
    below: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for parts in split.values():
        for length in range(1, len(parts)):
            below[tuple(parts[:length])].append(tuple(map(_starred, parts[length:])))
    alike: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for place, layers in below.items():
        if len(layers) > 1:
            alike[(*place[:-1], _starred(place[-1]))].append(place)
    repeated = {
        tuple(map(_starred, place))
        for places in alike.values()
        for place in places
        if any(other != place and set(below[other]) & set(below[place]) for other in places)
    }
    found = {}
    for name, parts in split.items():
        starred = tuple(map(_starred, parts))
        counts = [starred[: length + 1] in repeated for length in range(len(parts))]
        placed = any(counts)
        found[name] = ".".join(
            star if repetition or not placed else part
            for star, part, repetition in zip(starred, parts, counts, strict=True)
        )
    return found


def _starred(part: str) -> str:
    return _NUMBER.sub("*", part)
