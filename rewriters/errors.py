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

from dataclasses import dataclass

__all__ = [
    "BudgetError",
    "CrashError",
    "ExternalDataError",
    "ModelError",
    "Offer",
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


@dataclass(frozen=True, slots=True)
class Offer:
    """A budget that a plan keeps, and what that costs.

    Attributes:
        budget: The least budget to ask for, bytes; the margin for the prediction's error is in it.
        recompute: Work after over before.
        time: Predicted time after over before.
    """

    budget: int
    recompute: float
    time: float


class BudgetError(RewriterError):
    """No plan keeps the memory budget.

    Attributes:
        offers: Budgets that would be kept, the smallest first; none where nothing is known.
    """

    def __init__(self, message: str, offers: tuple[Offer, ...] = ()) -> None:
        super().__init__(message)
        self.offers = offers


class SaveError(RewriterError):
    """The result cannot be written where it was asked for."""
