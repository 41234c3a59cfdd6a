"""Writing files so that a reader finds the old one or the new one, whole, and nothing between."""

import os
import pathlib
from collections.abc import Callable
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
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; expected a writable folder with free "
                         "space, the file before is untouched, try making room or another folder") from None
