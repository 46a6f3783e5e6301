"""What the package hands out: functions, results and errors. `patchconv_deploy` has them all."""

from patchconv_deploy.api import RewriteResult, convert_model, pareto, rewrite
from patchconv_deploy.engines.errors import (
    BuildError,
    DeviceMissing,
    EngineError,
    EngineMissing,
    LoadError,
    NoKernel,
    OutOfMemory,
    ParseError,
    RunError,
    TimeLimit,
    WorkspaceError,
)
from patchconv_deploy.engines.errors import OptionError as EngineOptionError
from patchconv_deploy.errors import Interrupted, PatchConvError, UsageError, VerificationError
from patchconv_deploy.report.report import Report
from patchconv_deploy.rewriters.errors import (
    BudgetError,
    CrashError,
    ExternalDataError,
    ModelError,
    Offer,
    OptionError,
    RewriterError,
    SaveError,
)
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate
from patchconv_deploy.schemas import schema
from patchconv_deploy.triton.write import check_triton_repository, write_triton_repository

__all__ = [
    "BudgetError",
    "BuildError",
    "Candidate",
    "CrashError",
    "DeviceMissing",
    "EngineError",
    "EngineMissing",
    "EngineOptionError",
    "ExternalDataError",
    "Interrupted",
    "LoadError",
    "ModelError",
    "NoKernel",
    "Offer",
    "OptionError",
    "OutOfMemory",
    "ParseError",
    "PatchConvError",
    "Report",
    "RewriteResult",
    "RewriterError",
    "RunError",
    "SaveError",
    "TimeLimit",
    "UsageError",
    "VerificationError",
    "WorkspaceError",
    "check_triton_repository",
    "convert_model",
    "pareto",
    "rewrite",
    "schema",
    "write_triton_repository",
]
