"""Chance, which every criterion has to beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PxpError
from .base import DataFreeCriterion


class Random(DataFreeCriterion):
    """A number for each unit, uniform in [0, 1) and independent of everything.

    Parameters
    ----------
    model, example, kinds
        As for :class:`pxp_fast.criteria.Relevance`.
    seed
        The same seed gives the same numbers, on any machine.
    """

    name = "random"

    def __init__(
        self, model: nn.Module, example: Tensor, *, seed: int = 0, kinds: tuple[str, ...] | None = None
    ) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
            raise PxpError(f"seed is {seed!r}; pass a whole number of at least 0 and below 2^64")
        self.seed = seed
        self.look_at(model, example, kinds)

    def options(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def values(self) -> Tensor:
        """One number for each unit, ``[U]`` float64 on the CPU."""
        count = sum(group.count for group in self.units)
        return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))
