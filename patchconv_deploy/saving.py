"""Write a model so that it is there whole or not at all.

Files are staged in a hidden folder beside the target, under their final names, so that they can be
run before they are published; publishing renames them into place. What goes wrong before that
leaves what stood there untouched.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from rewriters.errors import SaveError
from rewriters.external_data import (
    copy_external,
    external_range,
    is_external,
    is_pending,
    tensors,
)
from rewriters.graph import Loaded

__all__ = ["StagedModel", "check_target", "external_files", "stage"]

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
    sources = list(sources)
    for file in (out, _data_file(out)):
        if file.exists() and any(file.samefile(source) for source in sources):
            raise SaveError(f"{file}: the input is never overwritten; name another file with -o")
        if file.exists() and not force:
            raise SaveError(f"{file}: exists already; pass --force to overwrite it")


def _data_file(out: Path) -> Path:
    return out.with_name(out.name + ".data")


class StagedModel:
    """A model written beside its target, not yet published."""

    def __init__(self, folder: Path, out: Path) -> None:
        self._folder = folder
        self._out = out
        self.path = folder / out.name

    def write(self, model: onnx.ModelProto) -> None:
        """Write the model itself anew, whole or not at all; its weights stay as they are."""
        begun = self._folder / f"{self._out.name}.begun"
        _write(model, begun)
        os.replace(begun, self.path)

    def publish(self) -> None:
        """Rename the staged files into place; the weights first, so that no model lacks them.

        If the model itself cannot be put in place, the weights it replaced are put back.
        """
        data, old = _data_file(self._out), self._folder / f"{self._out.name}.replaced"
        staged = self._folder / data.name
        if staged.exists():
            if data.exists():
                os.replace(data, old)
            os.replace(staged, data)
        try:
            os.replace(self.path, self._out)
        except BaseException:
            if old.exists():
                os.replace(old, data)
            raise


@contextmanager
def stage(
    model: onnx.ModelProto, folder: Path | None, out: Path, *, share_weights: bool = False
) -> Iterator[StagedModel]:
    """Write a model to a staging folder beside its target; the folder is removed at the end.

    Args:
        model: The model; its external tensors are pointed to their new place.
        folder: The folder its external data lies in.
        out: The file to publish to.
        share_weights: Refer to the original's own weight files instead of copying them; what is
            made of them is written all the same.

    Raises:
        SaveError: Weights cannot be shared from there, or the folder cannot be written.
    """
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            raise SaveError(f"{out.parent}: not writable ({error.strerror})") from error
        raise
    try:
        if folder is not None and any(is_external(tensor) for tensor in tensors(model)):
            wanted = is_external
            if share_weights:
                _share(model, folder, out, staging)
                wanted = is_pending
            if any(wanted(tensor) for tensor in tensors(model)):
                with (staging / _data_file(out).name).open("xb") as stream:
                    copy_external(model, folder, stream, _data_file(out).name, wanted)
                    _flush(stream.fileno())
        staged = StagedModel(staging, out)
        _write(model, staged.path)
        yield staged
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(model: onnx.ModelProto, path: Path) -> None:
    data = model.SerializeToString(deterministic=True)
    # "x": a shared weight file that is linked there under this name is not written through.
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        _flush(stream.fileno())


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


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
                f"write beside {source.parent} or leave --share-weights out"
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
                "body from no such file; leave --share-weights out, or choose another --form"
            )
        link.parent.mkdir(parents=True, exist_ok=True)
        if in_body and (not link.exists() or link.samefile(source)):
            link.unlink(missing_ok=True)
            shutil.copyfile(source, link)
        elif not link.exists():
            os.link(source, link)
