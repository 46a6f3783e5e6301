"""What a server would refuse in a model repository, said beforehand and in words to act on.

Rules come in three layers, each a function that yields findings: the configuration alone (Triton's
core, `config_problems`), the folder (versions and files, `folder_problems`), and the configuration
against the model (the ONNX Runtime backend, `model_problems`). Auto-completion counts as off.

A repository is not trusted. Whatever a configuration names is opened only where it lies in the
folder it belongs to, by name, and in the repository, links followed; each model is checked in a
process of its own (`patchconv_deploy.triton.validate.child`), and one that cannot be checked,
whatever the cause, is a finding and no end of the check of the others.

Left to the server: ensembles, sequence batching beyond its names, and models of other backends,
whose files are not looked into.

Source: the checks of triton-inference-server/core and triton-inference-server/onnxruntime_backend.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from patchconv_deploy.engines.errors import EngineError
from patchconv_deploy.engines.ort.signature import Runtime
from patchconv_deploy.engines.process.child import Child, child_process
from patchconv_deploy.errors import UsageError
from patchconv_deploy.triton.schema import read_config, schema
from patchconv_deploy.triton.validate.config import config_problems, fill
from patchconv_deploy.triton.validate.files import folder_problems, within
from patchconv_deploy.triton.validate.finding import Finding

__all__ = ["check_model", "check_repository"]


# A configuration of a thousand inputs is a tenth of it.
_LARGEST_CONFIG = 1 << 20

_TIME_LIMIT_S = 600.0


def check_repository(
    repository: Path, *, gpu: bool | None = None, config_name: str = ""
) -> list[Finding]:
    """Check every model of a repository.

    Args:
        repository: The repository's folder.
        gpu: Whether the server has a GPU; None: not known, so either will do.
        config_name: The server's ``--model-config-name``.

    Raises:
        UsageError: It is no folder, or tritonclient is not installed.
    """
    if not repository.is_dir():
        raise UsageError(f"{repository}: no such folder")
    schema()
    found = []
    with ExitStack() as stack:
        apart = _Apart(stack)
        for model in sorted(entry for entry in repository.iterdir() if entry.is_dir()):
            found += apart.check(model, gpu, config_name)
    return found


class _Apart:
    """Checks models, one at a time, in one process; in a new one if that dies."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._child: Child | None = None

    def check(self, model: Path, gpu: bool | None, config_name: str) -> list[Finding]:
        """Check a model's folder; that it cannot be checked is a finding."""
        if self._child is None:
            self._child = self._stack.enter_context(
                child_process("patchconv_deploy.triton.validate.child")
            )
        try:
            answer = self._child.ask(
                "check",
                time_limit_s=_TIME_LIMIT_S,
                model=str(model),
                gpu=gpu,
                config_name=config_name,
            )
        except EngineError as error:
            self._child = None
            self._stack.close()
            return [
                Finding(
                    model.name, model.name, f"it could not be checked, take it for refused: {error}"
                )
            ]
        return [Finding(**finding) for finding in answer["findings"]]


def check_model(
    model: Path, opener: Runtime, *, gpu: bool | None = None, config_name: str = ""
) -> list[Finding]:
    """Check one model's folder; arguments as of `check_repository`."""
    if not within(model, model.parent):
        reason = "it is a link out of the repository and was not opened; put the folder itself here"
        return [Finding(model.name, model.name, reason)]
    file = model / "config.pbtxt"
    named = model / "configs" / f"{config_name}.pbtxt"
    if config_name and named.is_file():
        file = named

    def finding(reason: str) -> Finding:
        return Finding(model.name, str(file.relative_to(model.parent)), reason)

    if not file.is_file():
        return [
            finding(
                "missing; a server without auto-completion needs it (write it with "
                "'patchconv triton')"
            )
        ]
    if not within(file, model.parent):
        return [finding("it is a link out of the repository and was not opened; put the file here")]
    if file.stat().st_size > _LARGEST_CONFIG:
        return [finding(f"it is larger than {_LARGEST_CONFIG >> 10} KiB, so it was not read")]
    try:
        config = read_config(file)
    except (ValueError, RecursionError) as error:
        return [finding(f"not a model configuration: {error}")]
    fill(config, model)
    found = [finding(reason) for reason in config_problems(config, model.name, gpu)]
    # A configuration that is wrong in itself says nothing reliable about files.
    if not found:
        found = [finding(reason) for reason in folder_problems(config, model, opener)]
    return found
