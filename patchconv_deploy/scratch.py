"""Folders that are gone when they are done with, or, where a run was killed, with the next run.

Beside each folder stands a file that its owner holds a lock on (flock(2)), so that a file that can
be locked means that its owner has ended, on whatever machine it ran:

    .patchconv-ab12.lock    locked while the run lives; made first, removed last
    .patchconv-ab12/

Where there are no such locks (Windows, some network file systems) nothing is taken for dead, and
what a killed run left behind stays.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["scratch_folder", "temporary_folder"]

logger = logging.getLogger(__name__)

_LOCK = ".lock"


@contextmanager
def scratch_folder(
    parent: Path, prefix: str, *, settle: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Make a folder for as long as the context lasts, with what dead runs left removed first.

    Args:
        parent: The folder to make it in.
        prefix: What its name begins with; dead runs are looked for under the same one.
        settle: Called with the folder of a dead run before it is removed.

    Raises:
        OSError: It cannot be made.
    """
    with suppress(OSError):  # what cannot be cleaned up does not hold up what is to be done
        _sweep(parent, prefix, settle)
    lock, descriptor = _make_lock(parent, prefix)
    folder = lock.with_name(lock.name.removesuffix(_LOCK))
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder where the system keeps temporary files."""
    with scratch_folder(Path(tempfile.gettempdir()), "patchconv-") as folder:
        yield folder


def _make_lock(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        path = parent / f"{prefix}{secrets.token_hex(6)}{_LOCK}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        # Before it was locked, another run may have taken it for a dead one's.
        if _try_lock(descriptor) is False or not _is_there(path, descriptor):
            os.close(descriptor)
            continue
        return path, descriptor


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def _try_lock(descriptor: int) -> bool | None:
    """Lock a file; False if another holds it, None if this system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.debug("no locks there: %s", error)
        return None
    return True


def _sweep(parent: Path, prefix: str, settle: Callable[[Path], None] | None) -> None:
    """Remove the folders of runs that have ended without doing so."""
    with os.scandir(parent) as entries:
        names = [e.name for e in entries if e.name.startswith(prefix) and e.name.endswith(_LOCK)]
    for name in names:
        lock, folder = parent / name, parent / name.removesuffix(_LOCK)
        try:
            descriptor = os.open(lock, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            continue  # gone by now, or somebody else's
        try:
            if _try_lock(descriptor) and _is_ours(descriptor) and _is_there(lock, descriptor):
                logger.info("%s is left over from a run that was killed", folder)
                if settle is not None and folder.is_dir() and not folder.is_symlink():
                    settle(folder)
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _is_ours(descriptor: int) -> bool:
    return not hasattr(os, "getuid") or os.fstat(descriptor).st_uid == os.getuid()
