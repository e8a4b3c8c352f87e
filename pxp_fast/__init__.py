"""Prune vision networks by explaining them: score units by relevance, remove the least relevant, prove what that did.

>>> scores = pxp_fast.score(model, loader)
>>> plan = pxp_fast.plan(scores, rate=0.3)
>>> with pxp_fast.masked(model, plan):
...     pxp_fast.evaluate(model, validation)
"""

from .criteria import attribute
from .errors import PxpError
from .evaluate import RATES, Curve, Evaluation, evaluate, sweep
from .lrp import Composite
from .masks import apply_mask, masked
from .plan import Plan, plan
from .repair import Repair, repair
from .scores import Scores
from .scoring import score
from .slim import Slimmer, SlimRecord, slim
from .stability import Stability, balanced_order, stability
from .stopping import UntilStable
from .tasks import Task, random_task
from .tune import tune
from .units import ParameterSlice, UnitGroup
from .version import __version__

__all__ = [
    "RATES",
    "Composite",
    "Curve",
    "Evaluation",
    "ParameterSlice",
    "Plan",
    "PxpError",
    "Repair",
    "Scores",
    "SlimRecord",
    "Slimmer",
    "Stability",
    "Task",
    "UntilStable",
    "UnitGroup",
    "__version__",
    "apply_mask",
    "attribute",
    "balanced_order",
    "evaluate",
    "masked",
    "plan",
    "random_task",
    "repair",
    "score",
    "slim",
    "stability",
    "sweep",
    "tune",
]
