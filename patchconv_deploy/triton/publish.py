"""Publish a model into a Triton repository so that a server sees all of it or nothing of it.

The whole folder of the model is laid out beside the repository, on the same file system: the
versions that stand (hard links, so no byte is copied), the new one, the configuration. Then one
system call puts it in place: a rename where no such model stands, an exchange of the two folders
where one does. Whoever publishes holds a lock on the repository; what an ended publisher left
behind is removed by the next one.

    repository/NAME (1/, config.pbtxt)  <-- exchanged -->  .staged/NAME (1/, 2/, config.pbtxt)

Source: renameat2(2), RENAME_EXCHANGE.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from patchconv_deploy.errors import UsageError
from patchconv_deploy.scratch import scratch_folder

__all__ = ["Staged", "check_name", "stage_version", "versions"]


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

_VERSION = re.compile(r"[1-9][0-9]{0,18}")

_LARGEST_VERSION = 2**63 - 1

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def check_name(name: str) -> None:
    """Refuse a name that could leave the repository or that a URL would have to quote.

    Raises:
        UsageError: The name is such a one.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"model name {name!r}: use letters, digits, '_', '.' and '-', a letter or digit first, "
            "at most 128 characters (name=)"
        )


def versions(model: Path) -> list[int]:
    """Return the versions in a model's folder that a server looks at, ascending."""
    if not model.is_dir():
        return []
    return sorted(
        int(entry.name)
        for entry in model.iterdir()
        if entry.is_dir() and _VERSION.fullmatch(entry.name)
    )


class Staged:
    """A model's folder laid out beside the repository. Made by `stage_version`.

    Attributes:
        model: The folder, to be filled; it holds what stands.
        version: The number of the new version.
        folder: The folder of the new version, empty.
    """

    def __init__(self, model: Path, target: Path, version: int) -> None:
        self.model = model
        self.version = version
        self.folder = model / str(version)
        self._target = target

    def publish(self) -> None:
        """Put the folder in place, in one step; what stood there is what it replaces.

        Raises:
            UsageError: The file system cannot exchange two folders in one step.
        """
        _flush_tree(self.model)
        if self._target.exists():
            _exchange(self.model, self._target)
        else:
            os.rename(self.model, self._target)
        _flush(self._target.parent)


@contextmanager
def stage_version(
    repository: Path,
    name: str,
    version: int | None = None,
    *,
    force: bool = False,
    staging: Path | None = None,
) -> Iterator[Staged]:
    """Lay out a model's folder with room for a new version; what is not published is removed.

    Args:
        repository: The repository; made if it is missing.
        name: The model.
        version: The new version; the next free one if None.
        force: Let it replace a version that stands.
        staging: A folder outside the repository on its file system; its parent if None.

    Raises:
        UsageError: The name, the version or a folder will not do.
    """
    check_name(name)
    if version is not None and not 1 <= version <= _LARGEST_VERSION:
        raise UsageError(f"version={version}: versions are whole numbers from 1")
    with _made(repository) as repository, _locked(repository):
        place = (staging or repository.parent).resolve()
        _check_staging(repository, place)
        target = repository / name
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise UsageError(f"{target}: no folder; move it away or choose another name=")
        standing = versions(target)
        if version is None:
            version = max(standing, default=0) + 1
        if version in standing and not force:
            raise UsageError(
                f"{target / str(version)}: this version exists; leave version= out for the next "
                "free one, or pass force=True to replace it"
            )
        prefix = f".{repository.name}.{name}.staged-"
        with scratch_folder(place, prefix) as folder:
            model = folder / name
            if target.exists():
                _link_tree(target, model)
            else:
                model.mkdir(mode=0o755)
            staged = Staged(model, target, version)
            if staged.folder.exists():
                shutil.rmtree(staged.folder)
            staged.folder.mkdir(mode=0o755)
            yield staged


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """Make the repository if it is missing; an empty one that was made here goes on failure."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"repository={str(folder)!r}: is no folder")
    if not folder.absolute().parent.is_dir():
        parent = folder.absolute().parent
        raise UsageError(f"repository={str(folder)!r}: no such folder {parent}")
    missing = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        yield folder.resolve()
    except BaseException:
        if missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def _check_staging(repository: Path, place: Path) -> None:
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UsageError(f"{place}: not a folder to write to; name another with staging=")
    if place.is_relative_to(repository):
        raise UsageError(
            f"staging={str(place)!r}: a server would take it for a model; name one outside"
        )
    if place.stat().st_dev != repository.stat().st_dev:
        raise UsageError(
            f"{place} is on another file system than {repository}, so nothing can be moved into "
            "place in one step; name a folder on the same one with staging="
        )
    if not os.access(repository, os.W_OK):
        raise UsageError(f"repository={str(repository)!r}: not writable")


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    import fcntl  # not on Windows, where the rest of the package imports

    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _link_tree(source: Path, target: Path) -> None:
    """Copy folders with their times, files as hard links where that is possible."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    # Times stay, so that a server that polls sees no change in the versions that stand.
    shutil.copytree(source, target, symlinks=True, copy_function=link)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(folder: Path) -> None:
    for where, _, files in os.walk(folder):
        for name in files:
            if not Path(where, name).is_symlink():
                _flush(Path(where, name))
        _flush(Path(where))


def _exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "renameat2", None)
    number = errno.ENOSYS
    if call is not None:
        if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
            return
        number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTSUP):
        raise UsageError(
            f"{other}: this file system cannot exchange two folders in one step, so a server could "
            "see half of the change; publish under another name="
        )
    raise OSError(number, os.strerror(number), str(other))
