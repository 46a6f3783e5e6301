"""What the engines raise, as one tree. Errors of runtimes are translated into these.

EngineError
  + EngineMissing     the runtime is not installed
  + DeviceMissing     the machine lacks what is asked for (a GPU, a driver)
  + OptionError       an option that means nothing to this engine, or contradicts another
  + LoadError         the runtime refuses the model
  |   - NoKernel      it has no kernel for an operator at this element type
  |   - ParseError    its parser refuses a node
  + BuildError        no engine comes of the model
  |   - WorkspaceError  a layer needs more memory than it may have
  + RunError          the model fails while it runs
      - OutOfMemory     for want of memory
      - TimeLimit       it takes longer than it may
"""

from __future__ import annotations

__all__ = [
    "BuildError",
    "DeviceMissing",
    "EngineError",
    "EngineMissing",
    "LoadError",
    "NoKernel",
    "OptionError",
    "OutOfMemory",
    "ParseError",
    "RunError",
    "TimeLimit",
    "WorkspaceError",
]


class EngineError(Exception):
    """Base of every error of this package; the message is one line."""


class EngineMissing(EngineError):  # noqa: N818 - a state of the machine, named for what is wrong
    """The runtime is not installed; the message says what to install."""


class DeviceMissing(EngineError):  # noqa: N818
    """The machine lacks what is asked for; the message names it."""


class OptionError(EngineError):
    """An option that means nothing to this engine, or contradicts another."""


class LoadError(EngineError):
    """The runtime refuses the model."""


class NoKernel(LoadError):  # noqa: N818
    """The runtime has no kernel for an operator at this element type."""


class ParseError(LoadError):
    """The parser refuses a node; the message names it.

    Attributes:
        nodes: Names of the refused nodes, as in the model's file.
    """

    def __init__(self, message: str, nodes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.nodes = nodes


class BuildError(EngineError):
    """No engine comes of the model."""


class WorkspaceError(BuildError):
    """A layer needs more memory than it may have; the message says what to do.

    Attributes:
        layer: The layer, as the builder calls it.
    """

    def __init__(self, message: str, layer: str = "") -> None:
        super().__init__(message)
        self.layer = layer


class RunError(EngineError):
    """The model fails while it runs."""


class OutOfMemory(RunError):  # noqa: N818
    """There is not enough memory to open or run the model."""


class TimeLimit(RunError):  # noqa: N818
    """The model takes longer than it may."""
