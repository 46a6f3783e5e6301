"""PatchConv for exported ONNX graphs: cut large convolutions into patches, with the same numbers.

`convert_model` takes a path, a ModelProto, a graphsurgeon graph or a torch module and returns the
same kind; `rewrite` takes a path and returns the result with its report; `pareto` takes a path and
returns the curve of predicted peak against work.

Errors are drawn as trees in `rewriters.errors` (what is wrong with a model, an option or a budget),
`patchconv_deploy.errors` (what is wrong with an argument or the result) and `engines.errors` (what
a runtime says); `OptionError` is the rewriters', `EngineOptionError` the engines' of that name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from patchconv_deploy.version import VERSION

if TYPE_CHECKING:
    from patchconv_deploy.public import *  # noqa: F403

__version__ = VERSION


def __getattr__(name: str) -> Any:
    """Import what is asked for: a process whose memory is measured imports this package as well."""
    public = import_module(f"{__name__}.public")
    if name == "__all__":
        return sorted([*public.__all__, "__version__"])
    if name in public.__all__:
        return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names that are handed out beside the module's own."""
    return sorted({*globals(), *__getattr__("__all__")})
