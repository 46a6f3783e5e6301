"""What the engines raise, as one tree. Errors of runtimes are translated into these.

EngineError
  + EngineMissing     the runtime is not installed
  + DeviceMissing     the machine lacks what is asked for (a GPU, a driver)
  + LoadError         the runtime refuses the model
  |   - NoKernel      it has no kernel for an operator at this element type
  + RunError          the model fails while it runs
"""

from __future__ import annotations

__all__ = ["DeviceMissing", "EngineError", "EngineMissing", "LoadError", "NoKernel", "RunError"]


class EngineError(Exception):
    """Base of every error of this package; the message is one line."""


class EngineMissing(EngineError):  # noqa: N818 - a state of the machine, named for what is wrong
    """The runtime is not installed; the message says what to install."""


class DeviceMissing(EngineError):  # noqa: N818
    """The machine lacks what is asked for; the message names it."""


class LoadError(EngineError):
    """The runtime refuses the model."""


class NoKernel(LoadError):  # noqa: N818
    """The runtime has no kernel for an operator at this element type."""


class RunError(EngineError):
    """The model fails while it runs."""
