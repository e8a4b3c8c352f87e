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
from .scores import Scores
from .scoring import score
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
    "Scores",
    "UnitGroup",
    "__version__",
    "apply_mask",
    "attribute",
    "evaluate",
    "masked",
    "plan",
    "score",
    "sweep",
    "tune",
]
