"""Writing files so that a reader finds the old one or the new one, whole, and nothing between."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from bloodcell.errors import InputError


def write_atomically(path: pathlib.Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Writes a file under a temporary name beside it, syncs it to disk, and renames it.

    Args:
      path: the file; its folder is made where it is missing.
      content: the bytes, or a function that writes them to an open file.

    Raises:
      InputError: the folder cannot be written or the disk is full; whatever `path` held is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; expected a writable folder with free "
                         "space, the file before is untouched, try making room or another folder") from None


def append_line(path: pathlib.Path, line: str) -> None:
    """Adds a line to a file and syncs it to disk; raises InputError where the disk refuses."""
    try:
        with open(path, "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; expected a writable folder with free "
                         "space, try making room or another folder") from None


def check_folder(folder: pathlib.Path) -> None:
    """Raises InputError where a run's folder can be neither made nor written; makes none, to be asked first."""
    try:
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        reason = ("Not a directory" if not nearest.is_dir() else
                  "" if os.access(nearest, os.W_OK | os.X_OK) else "Permission denied")
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise _no_folder(folder, reason)


def make_folder(folder: pathlib.Path) -> None:
    """Makes a folder of a run, and those above it; raises InputError where it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(folder, error.strerror or str(error)) from None
    check_folder(folder)


def _no_folder(folder: pathlib.Path, reason: str) -> InputError:
    return InputError(f"--workdir expected a folder that can be written, received {folder} ({reason}); "
                      "try --workdir=FOLDER elsewhere")


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes that ask for the same folder out until the block, or this process, has ended.

    Raises:
      InputError: another process has it; the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(folder / ".lock", "ab"))
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror or error}; expected a writable folder with free "
                             "space, try another") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"expected a folder that no other process works in, received {folder}; try waiting for "
                             "it, or another --workdir") from None
        except OSError:  # a file system without locks
            pass
        yield


def sync_folder(folder: pathlib.Path) -> None:
    """Has a renamed file's name on disk before anything that is done later."""
    with contextlib.suppress(OSError):  # some file systems cannot, and lose nothing by it but the newest file
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
