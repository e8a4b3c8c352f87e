"""Slimming: a plan's units cut out of a model, which stays an ordinary module of its own class."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .errors import PlanError
from .lrp import capture
from .lrp.capture import evaluating
from .masks import apply_mask
from .plan import Plan
from .slimming.coupling import Coupling
from .slimming.removal import Removal
from .slimming.surgery import cut


def slim(model: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
    masked = copy.deepcopy(model)
    apply_mask(masked, plan)
    captured = capture(masked, example)
    removal = Removal(captured, Coupling(captured))
    small = copy.deepcopy(masked)
    cut(small, removal)
    return small
