"""PatchConv for exported ONNX graphs: cut large convolutions into patches, with the same numbers.

`convert_model` takes a path, a ModelProto, a graphsurgeon graph or a torch module and returns the
same kind; `rewrite` takes a path and returns the result with its report; `pareto` takes a path and
returns the curve of predicted peak against work.
"""

from patchconv_deploy.api import RewriteResult, convert_model, pareto, rewrite
from patchconv_deploy.errors import PatchConvError, UsageError, VerificationError
from patchconv_deploy.report import Report
from patchconv_deploy.triton import check_triton_repository, write_triton_repository
from rewriters.errors import (
    ExternalDataError,
    ModelError,
    OptionError,
    RewriterError,
    SaveError,
)
from rewriters.frontier import Candidate

__all__ = [
    "Candidate",
    "ExternalDataError",
    "ModelError",
    "OptionError",
    "PatchConvError",
    "Report",
    "RewriteResult",
    "RewriterError",
    "SaveError",
    "UsageError",
    "VerificationError",
    "check_triton_repository",
    "convert_model",
    "pareto",
    "rewrite",
    "write_triton_repository",
]
