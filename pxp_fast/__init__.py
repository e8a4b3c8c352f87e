"""Prune vision networks by explaining them: score units by relevance, remove the least relevant, prove what that did.

>>> scores = pxp_fast.score(model, loader)
>>> plan = pxp_fast.plan(scores, rate=0.3)
>>> with pxp_fast.masked(model, plan):
...     pxp_fast.evaluate(model, validation)
"""

from .budget import Achieved, Planned, plan_for
from .checkpoint import load, save
from .criteria import attribute
from .errors import PxpError
from .evaluate import RATES, Curve, Evaluation, evaluate, sweep
from .export import export_onnx, export_torch
from .finetune import FineTuned, finetune
from .lrp import Composite
from .masks import apply_mask, masked
from .plan import Plan, plan
from .prune_masks import prune_masks
from .repair import Repair, repair
from .scores import Scores
from .scoring import score
from .slim import Slimmer, SlimRecord, slim
from .stability import Stability, balanced_order, stability
from .steps import Stepped, plan_in_steps
from .stopping import UntilStable
from .task_study import TaskStudy, over_tasks
from .tasks import Task, random_task
from .tune import tune
from .units import ParameterSlice, UnitGroup
from .version import __version__

__all__ = [
    "RATES",
    "Achieved",
    "Composite",
    "Curve",
    "Evaluation",
    "FineTuned",
    "ParameterSlice",
    "Plan",
    "Planned",
    "PxpError",
    "Repair",
    "Scores",
    "SlimRecord",
    "Slimmer",
    "Stability",
    "Stepped",
    "Task",
    "TaskStudy",
    "UntilStable",
    "UnitGroup",
    "__version__",
    "apply_mask",
    "attribute",
    "balanced_order",
    "evaluate",
    "export_onnx",
    "export_torch",
    "finetune",
    "load",
    "masked",
    "over_tasks",
    "plan",
    "prune_masks",
    "plan_for",
    "plan_in_steps",
    "random_task",
    "save",
    "repair",
    "score",
    "slim",
    "stability",
    "sweep",
    "tune",
]
