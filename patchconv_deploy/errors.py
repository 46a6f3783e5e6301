"""What the front raises, as one tree; each class knows the exit code of the command line.

PatchConvError (1)
  + UsageError (2)         an argument is wrong, or does not fit the files
  + Interrupted (130)      Ctrl-C, after a file was written
  + VerificationError (1)  the rewritten model does not compute the same
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchconv_deploy.report.report import Report

__all__ = ["Interrupted", "PatchConvError", "UsageError", "VerificationError"]


class PatchConvError(Exception):
    """Base of every error of this package; the message is one line and says what to do."""

    exit_code = 1


class UsageError(PatchConvError):
    """An argument is wrong, or does not fit the files."""

    exit_code = 2


class Interrupted(PatchConvError):  # noqa: N818 - no error, and named as the shell names it
    """The work was interrupted after a file was written."""

    exit_code = 130


class VerificationError(PatchConvError):
    """The rewritten model does not compute the same; nothing was written.

    Attributes:
        report: What was done and found.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report
