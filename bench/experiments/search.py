"""The search for each subject's composite, on training images that neither score nor judge elsewhere."""

from __future__ import annotations

from .measure import Bench
from .methods import Subject


def tune(bench: Bench, subject: Subject) -> bool:
    """Search, and keep what was found beside the results."""
    raise NotImplementedError
