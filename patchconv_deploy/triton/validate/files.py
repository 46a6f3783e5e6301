"""What a server would refuse in a model's folder, and which file it would open."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from patchconv_deploy.engines.ort.signature import Runtime
from patchconv_deploy.triton.validate.finding import FILES, RESERVED
from patchconv_deploy.triton.validate.model import onnx_problems

__all__ = ["folder_problems", "within"]


def folder_problems(config: Any, model: Path, opener: Runtime) -> Iterator[str]:
    """Yield what is wrong with versions and files, and with the models in them."""
    serving, problem = _serving(config, model)
    if problem is not None:
        yield problem
    yield from _other_file_problems(config, model)
    names = {config.default_model_filename, *config.cc_model_filenames.values()}
    for version in serving:
        folder = model / str(version)
        for name in sorted(names):
            escape = _escape(folder, name, model.parent)
            if escape is not None:
                yield f"model file {name!r} {escape}; name a file in the version's folder"
            if escape is not None or config.backend not in FILES:
                continue
            file = folder / name
            if config.backend == "onnxruntime" and file.is_dir():
                file /= "model.onnx"
                if not within(file, model.parent):
                    yield f"{name}/model.onnx is a link out of the repository and was not opened"
                    continue
            if not file.is_file():
                yield (
                    f"version {version} has no file {name!r}; put the model there, or name its "
                    "file in default_model_filename"
                )
            elif config.backend == "onnxruntime":
                where = file.relative_to(model)
                yield from (f"{where}: {p}" for p in onnx_problems(config, file, opener))


def _other_file_problems(config: Any, model: Path) -> Iterator[str]:
    """Yield what is wrong with the files beside the model that a configuration names."""
    for output in config.output:
        if output.label_filename:
            what = f"output {output.name!r}: label_filename"
            yield from _file_problem(what, model, output.label_filename, model.parent)
    for sample in config.model_warmup:
        for name, made in sample.inputs.items() if sample.batch_size else ():
            if made.WhichOneof("input_data_type") == "input_data_file":
                what = f"model_warmup {sample.name!r}, input {name!r}: input_data_file"
                yield from _file_problem(what, model / "warmup", made.input_data_file, model.parent)
    for state in config.sequence_batching.state:
        for initial in state.initial_state:
            if initial.WhichOneof("state_data") == "data_file":
                what = f"state {state.input_name!r}: data_file"
                folder = model / "initial_state"
                yield from _file_problem(what, folder, initial.data_file, model.parent)


def _file_problem(what: str, folder: Path, name: str, repository: Path) -> Iterator[str]:
    escape = _escape(folder, name, repository)
    if escape is not None:
        yield f"{what} {name!r} {escape}; name a file in the folder"
    elif not (folder / name).is_file():
        where = "the model's folder" if folder.parent == repository else f"{folder.name}/"
        yield f"{what} {name!r} is not in {where}; put it there or leave it out"


def _escape(folder: Path, name: str, repository: Path) -> str | None:
    """Return how a name leads out of the folder it belongs to, None if it does not.

    Nothing is opened. Links may lead to another place of the repository, not out of it.
    """
    if not name.isprintable():
        return "holds control characters and was not opened"
    pure = PurePath(name)
    if pure.is_absolute():
        return "is an absolute path and was not opened"
    if ".." in pure.parts:
        return "leads out of its folder and was not opened"
    if not within(folder / name, repository):
        return "is a link out of the repository and was not opened"
    return None


def within(path: Path, repository: Path) -> bool:
    """Tell whether a path lies in the repository when every link is followed."""
    try:
        return path.resolve().is_relative_to(repository.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, a name that is too long
        return False


def _serving(config: Any, model: Path) -> tuple[list[int], str | None]:
    """Return the versions the server would load, and what is wrong with them."""
    standing: dict[int, str] = {}
    odd = []
    for entry in sorted(e for e in model.iterdir() if e.is_dir() and e.name not in RESERVED):
        if len(entry.name) > 1 and entry.name.startswith("0"):
            odd.append(entry.name)
        elif number := re.match(r"\s*[+-]?[0-9]+", entry.name, re.ASCII):
            standing.setdefault(int(number[0]), entry.name)
        else:
            odd.append(entry.name)
    policy = config.version_policy
    choice = policy.WhichOneof("policy_choice")
    wanted = sorted(standing)
    if choice == "specific":
        missing = sorted(set(policy.specific.versions) - set(standing))
        wanted = [version for version in policy.specific.versions if version in standing]
        if missing and not wanted:
            return [], (
                f"version_policy asks for {missing}, there are {sorted(standing) or 'none'}; "
                "publish them or change the policy"
            )
    elif choice != "all":
        wanted = wanted[-max(1, policy.latest.num_versions) :]
    for version in wanted:
        name = standing[version]
        if name != str(version) or not 0 <= version < 2**63:
            return [], (
                f"folder {name!r} begins like a version and is none; the server reads it as a "
                "number and looks for a folder of that name. Rename it"
            )
    if not wanted:
        seen = f" ({', '.join(map(repr, odd))}: a version is a number without leading zeros)"
        return [], (
            "the model has no version: put its file into a folder named 1" + (seen if odd else "")
        )
    return wanted, None
