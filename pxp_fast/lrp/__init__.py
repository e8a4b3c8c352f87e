"""The attribution engine: layer-wise relevance of every unit of a captured classifier."""

from .capture import capture
from .composites import Composite
from .graph import Captured
from .program import Program, Reader
from .registry import Part, Rule, register, rule

__all__ = ["Captured", "Composite", "Part", "Program", "Reader", "Rule", "capture", "register", "rule"]
