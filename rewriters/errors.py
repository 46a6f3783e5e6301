"""What the rewriters raise, as one tree.

    RewriterError
      + ModelError            the model cannot be read, or is not a valid ONNX model
      |   - ExternalDataError a weight file is missing, too short, or outside the model's folder
      |   - CrashError        onnx's own code crashes on it, or wants too much memory or time
      + OptionError           an option does not fit the model (shape, axis, opset)
      + BudgetError           no plan keeps the memory budget
      + SaveError             the result cannot be written

A Conv that cannot be cut is no error: it is a `Refusal`, carried in the report.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "CrashError",
    "ExternalDataError",
    "ModelError",
    "OptionError",
    "RewriterError",
    "SaveError",
]


class RewriterError(Exception):
    """Base of every error of this package; the message is one line and says what to do."""


class ModelError(RewriterError):
    """The model cannot be read, or is not a valid ONNX model."""


class ExternalDataError(ModelError):
    """An external weight file is missing, too short, or outside the model's folder."""


class CrashError(ModelError):
    """Onnx's own code crashes on the model, or wants more memory or time than it may have."""


class OptionError(RewriterError):
    """An option does not fit the model."""


class BudgetError(RewriterError):
    """No plan keeps the memory budget."""


class SaveError(RewriterError):
    """The result cannot be written where it was asked for."""
