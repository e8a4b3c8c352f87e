"""The errors that pxp_fast raises for bad input.

All derive from :class:`PxpError`, itself a ``ValueError``, so one ``except`` clause catches whatever the caller can
mend: each message names the thing, what was found, what was expected, and what to do.
"""


class PxpError(ValueError):
    """Base class: the input cannot be used as it is, and the message says what to change."""


class CaptureError(PxpError):
    """The model's graph cannot be captured, or holds an operator that would make relevance wrong."""


class ModelError(PxpError):
    """A model specification, a weights file, or a model's parameters cannot be used."""


class DataError(PxpError):
    """Images or labels are missing, unreadable, or do not fit the model."""


class ScoresError(PxpError):
    """A scores file is damaged, or belongs to another model."""


class PlanError(PxpError):
    """A plan cannot be made as asked, is damaged, or belongs to another model."""


class SlimError(PxpError):
    """A model cannot be made smaller without changing what it computes."""


class CheckpointError(PxpError):
    """A saved model is damaged or does not fit what is installed, or a model cannot be saved."""


class ExportError(PxpError):
    """A model cannot be exported, or what was exported computes something else."""


class NumericalError(PxpError):
    """Weights, activations or relevance are not finite."""


class OutputError(PxpError):
    """A result cannot be written where it was asked for."""
