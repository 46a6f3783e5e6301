"""Write a model so that it is there whole or not at all, its external weights included.

Files are staged in a hidden folder beside the target, so that they can be run before they are
published; publishing renames them into place. The name of the weights says what is in them, so new
ones never take the place of old ones:

    m.onnx  m.onnx.5f0c2a9be1d34477.data           what stands
    m.onnx  m.onnx.5f0c2a9be1d34477.data  m.onnx.c1d2...data
    m.onnx'                               m.onnx.c1d2...data, and the old weights go

Whenever a run ends, kill -9 included, one of the two pairs stands. A journal in the staging folder
says which weights are in question, so that the next run (`scratch`) can remove those that no model
refers to; nothing else is ever removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import onnx
from google.protobuf.message import DecodeError

from patchconv_deploy.rewriters.errors import SaveError
from patchconv_deploy.rewriters.graph.external_data import (
    copy_external,
    external_range,
    is_external,
    is_pending,
    tensors,
)
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.scratch import scratch_folder

__all__ = ["StagedModel", "check_target", "external_files", "stage"]

logger = logging.getLogger(__name__)

_PREFIX = ".patchconv-"
# In the staging folder: the staged files, what says which files are in question, what is begun.
_FILES, _JOURNAL, _BEGUN = "files", "journal.json", "begun"
_WEIGHTS = re.compile(r"(?P<model>.+)\.[0-9a-f]{16}\.data", re.DOTALL)
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR})


def external_files(loaded: Loaded) -> set[Path]:
    """Return the files a model's external weights lie in."""
    if loaded.folder is None:
        return set()
    return {
        external_range(tensor, loaded.folder).file
        for tensor in tensors(loaded.model)
        if is_external(tensor)
    }


def check_target(out: Path, sources: Iterable[Path], *, force: bool) -> None:
    """Refuse a target that must not be written.

    Args:
        out: The file to write; weights go to a file beside it.
        sources: The files it is made from.
        force: Overwrite an existing file.

    Raises:
        SaveError: The folder is missing or not writable, the file exists, or is an input.
    """
    folder = out.parent
    if not folder.is_dir():
        raise SaveError(f"{folder}: no such folder; create it first")
    if not os.access(folder, os.W_OK):
        raise SaveError(f"{folder}: not writable")
    if out.exists() and not out.is_file():
        kind = "a folder" if out.is_dir() else "no regular file"
        raise SaveError(f"{out}: is {kind}; name a file with -o")
    if out.exists() and any(out.samefile(source) for source in sources):
        raise SaveError(f"{out}: the input is never overwritten; name another file with out=")
    if out.exists() and not force:
        raise SaveError(f"{out}: exists already; pass force=True to overwrite it")
    if out.is_symlink() and not out.exists() and not force:
        raise SaveError(
            f"{out}: is a link to a file that is missing; pass force=True to replace the link"
        )


class StagedModel:
    """A model written beside its target, not yet published.

    Attributes:
        path: Where it stands meanwhile.
        weights: The file of weights beside the target, None where they are in the model or shared.
    """

    def __init__(
        self, folder: Path, out: Path, weights: str | None, keep: Collection[Path]
    ) -> None:
        self._folder = folder
        self._out = out
        self._weights = weights
        self._keep = keep
        self.path = folder / out.name
        self.weights = None if weights is None else out.parent / weights

    def write(self, model: onnx.ModelProto) -> None:
        """Write the model itself anew, whole or not at all; its weights stay as they are."""
        # Above the staged files, where no shared weights are linked under the same name.
        begun = self._folder.parent / _BEGUN
        _write(model, begun)
        os.replace(begun, self.path)

    def publish(self) -> None:
        """Rename the staged files into place, the model last, and remove the weights it replaces.

        Raises:
            OSError: A file cannot be put in place; what stood there stands there still.
        """
        with _locked(self._out.parent):
            old = _weights_in_use(self._out) or set()
            self._note(old | ({self._weights} if self._weights else set()))
            try:
                if self._weights:
                    os.replace(self._folder / self._weights, self._out.parent / self._weights)
                    _flush_folder(self._out.parent)
                os.replace(self.path, self._out)
                _flush_folder(self._out.parent)
            finally:
                _settle(self._folder.parent, self._keep)

    def _note(self, weights: Iterable[str]) -> None:
        """Write down which files are in question, before anything moves."""
        with (self._folder.parent / _JOURNAL).open("w", encoding="utf-8") as stream:
            json.dump({"model": self._out.name, "weights": sorted(weights)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        _flush_folder(self._folder.parent)


def _weights_in_use(out: Path) -> set[str] | None:
    """Return the files written here that the model at a place refers to.

    Returns:
        Names of weight files as `stage` gives them; None if what stands there cannot be read.
    """
    with os.scandir(out.parent) as entries:
        there = {entry.name for entry in entries if _is_weights_of(entry.name, out.name)}
    if not there or not out.exists():
        return set()
    try:
        model = onnx.ModelProto.FromString(out.read_bytes())
    except (DecodeError, OSError) as error:
        logger.debug("%s cannot be read: %s", out, error)
        return None
    return there & {
        entry.value
        for tensor in tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _is_weights_of(name: str, model: str) -> bool:
    found = _WEIGHTS.fullmatch(name)
    return found is not None and found["model"] == model


def _settle(staging: Path, keep: Collection[Path] = ()) -> None:
    """Remove the weights that a publication, whole or not, left without a model.

    Args:
        staging: The staging folder; its journal says which are in question.
        keep: Files that are never removed.
    """
    try:
        journal = json.loads((staging / _JOURNAL).read_text(encoding="utf-8"))
        model, weights = str(journal["model"]), [str(name) for name in journal["weights"]]
    except (OSError, ValueError, TypeError, KeyError):
        return  # nothing was moved yet
    if Path(model).name != model:
        return
    out = staging.parent / model
    used = _weights_in_use(out)
    if used is None:
        return
    for name in weights:
        file = staging.parent / name
        if name in used or not _is_weights_of(name, model) or file.is_symlink():
            continue
        if file.is_file() and not any(other.exists() and file.samefile(other) for other in keep):
            file.unlink()


def _settle_dead(staging: Path, keep: Collection[Path]) -> None:
    with _locked(staging.parent):
        _settle(staging, keep)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder against others who publish there, where the system has such locks."""
    with ExitStack() as stack:
        try:
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except (ImportError, OSError) as error:
            logger.debug("%s is not locked: %s", folder, error)
        yield


@contextmanager
def stage(
    model: onnx.ModelProto,
    folder: Path | None,
    out: Path,
    *,
    share_weights: bool = False,
    keep: Collection[Path] = (),
) -> Iterator[StagedModel]:
    """Write a model to a staging folder beside its target; the folder is removed at the end.

    What runs that were killed left in the target's folder is removed first.

    Args:
        model: The model; its external tensors are pointed to their new place.
        folder: The folder its external data lies in.
        out: The file to publish to.
        share_weights: Refer to the original's own weight files instead of copying them; what is
            made of them is written all the same.
        keep: Files it is made from; they are never replaced or removed.

    Raises:
        SaveError: Weights cannot be shared from there, they would replace the original's, or the
            folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            settle = partial(_settle_dead, keep=keep)
            made = stack.enter_context(scratch_folder(out.parent, _PREFIX, settle=settle))
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                raise SaveError(f"{out.parent}: not writable ({error.strerror})") from error
            raise
        staging = made / _FILES
        staging.mkdir()
        weights = None
        if folder is not None and any(is_external(tensor) for tensor in tensors(model)):
            wanted = is_external
            if share_weights:
                _share(model, folder, out, staging)
                wanted = is_pending
            if any(wanted(tensor) for tensor in tensors(model)):
                weights = _copy_weights(model, folder, out, staging, keep, wanted)
        staged = StagedModel(staging, out, weights, keep)
        _write(model, staged.path)
        yield staged


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.hash = hashlib.blake2b(digest_size=8)

    def write(self, data: bytes) -> int:
        """Write bytes."""
        self.hash.update(data)
        return self._stream.write(data)


def _copy_weights(
    model: onnx.ModelProto,
    folder: Path,
    out: Path,
    staging: Path,
    keep: Collection[Path],
    wanted: Callable[[onnx.TensorProto], bool],
) -> str:
    """Copy the weights that are wanted to a staged file named after its bytes; return that name."""
    begun = staging.parent / _BEGUN
    external = [tensor for tensor in tensors(model) if wanted(tensor)]
    with begun.open("xb") as stream:
        hashing = _Hashing(stream)
        copy_external(model, folder, cast("BinaryIO", hashing), begun.name, wanted)
        stream.flush()
        os.fsync(stream.fileno())
    name = f"{out.name}.{hashing.hash.hexdigest()}.data"
    file = out.parent / name
    if file.exists() and any(other.exists() and file.samefile(other) for other in keep):
        raise SaveError(f"{file}: the input is never overwritten; name another file with out=")
    os.replace(begun, staging / name)
    for tensor in external:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    return name


def _write(model: onnx.ModelProto, path: Path) -> None:
    data = model.SerializeToString(deterministic=True)
    # "x": a shared weight file that is linked there under this name is not written through.
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows opens no folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _share(model: onnx.ModelProto, folder: Path, out: Path, staging: Path) -> None:
    """Point external tensors at the original's files; link those into the staging folder too.

    ONNX Runtime has the tensors of bodies checked by onnx, which takes no file with several links.
    """
    around = {tensor.name for tensor in model.graph.initializer}
    for tensor in tensors(model):
        if not is_external(tensor) or is_pending(tensor):
            continue
        source = external_range(tensor, folder).file.resolve()
        if not source.is_relative_to(out.parent.resolve()):
            raise SaveError(
                f"{out}: weights can be shared only below the model's own folder; "
                f"write beside {source.parent} or leave share_weights=True out"
            )
        location = source.relative_to(out.parent.resolve()).as_posix()
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
        link = staging / location
        in_body = tensor.name not in around
        if in_body and source.stat().st_nlink > (2 if link.exists() else 1):
            raise SaveError(
                f"{source}: has several hard links, and ONNX Runtime reads weights of a Loop's "
                "body from no such file; leave share_weights=True out, or choose another form="
            )
        link.parent.mkdir(parents=True, exist_ok=True)
        if in_body and (not link.exists() or link.samefile(source)):
            link.unlink(missing_ok=True)
            shutil.copyfile(source, link)
        elif not link.exists():
            os.link(source, link)
