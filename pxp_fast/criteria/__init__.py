"""Criteria: ways to score the units of a network."""

from .lrp import Relevance, attribute

__all__ = ["Relevance", "attribute"]
