"""PatchConv for exported ONNX graphs: cut large convolutions into patches, with the same numbers.

`convert_model` takes a path, a ModelProto, a graphsurgeon graph or a torch module and returns the
same kind; `rewrite` takes a path and returns the result with its report; `pareto` takes a path and
returns the curve of predicted peak against work.

Errors are drawn as trees in `rewriters.errors` (what is wrong with a model, an option or a budget),
`patchconv_deploy.errors` (what is wrong with an argument or the result) and `engines.errors` (what
a runtime says); `OptionError` is the rewriters', `EngineOptionError` the engines' of that name.
"""

from engines.errors import (
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
from engines.errors import OptionError as EngineOptionError
from patchconv_deploy.api import RewriteResult, convert_model, pareto, rewrite
from patchconv_deploy.errors import Interrupted, PatchConvError, UsageError, VerificationError
from patchconv_deploy.report.report import Report
from patchconv_deploy.triton.write import check_triton_repository, write_triton_repository
from patchconv_deploy.version import VERSION
from rewriters.errors import (
    BudgetError,
    CrashError,
    ExternalDataError,
    ModelError,
    Offer,
    OptionError,
    RewriterError,
    SaveError,
)
from rewriters.planning.evaluated_plan import Candidate

__version__ = VERSION

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
    "__version__",
    "check_triton_repository",
    "convert_model",
    "pareto",
    "rewrite",
    "write_triton_repository",
]
