"""Criteria: ways to score the units of a network."""

from .combination import combine
from .lrp import Relevance, attribute
from .registry import CRITERIA, NAMES, criterion
from .step import CudaGraphs, GraphWarning, Step

__all__ = ["CRITERIA", "NAMES", "CudaGraphs", "GraphWarning", "Relevance", "Step", "attribute", "combine", "criterion"]
