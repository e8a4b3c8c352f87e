"""The attribution engine: layer-wise relevance of every unit of a captured classifier."""

from .capture import Captured, capture
from .composites import Composite
from .program import Program, Reader

__all__ = ["Captured", "Composite", "Program", "Reader", "capture"]
