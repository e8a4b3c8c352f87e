"""Criteria: ways to score the units of a network."""

from .lrp import Relevance, attribute
from .step import CudaGraphs, GraphWarning, Step

__all__ = ["CudaGraphs", "GraphWarning", "Relevance", "Step", "attribute"]
