"""A file that takes long to write: appended to under another name, and gone on with after its process has ended.

Beside `FILE.part` lies `FILE.part.json`: whose it is, and up to which byte it is on disk. What is written belongs to
the caller; a file that is written at one go belongs to `files`.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import time
import zlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from bloodcell.errors import InputError
from bloodcell.files import sync_folder, write_atomically

SYNC_SECONDS = 3.0  # between two times at which what was written is on disk for certain
_PIECE = 2**20


class PartFile:
    """What there is of a file so far.

    Attributes:
      path: where it is until it is complete.
      damaged: whether there was one that could not be used, so that this one is new.
    """

    def __init__(self, final: pathlib.Path, about: Mapping[str, Any]) -> None:
        """Opens the part of `final`, or makes it.

        Args:
          final: the complete file's name; what it holds stays until `rename`.
          about: JSON values that say which work this is.

        Raises:
          InputError: it cannot be written, another process writes it, or it belongs to other work.
        """
        self.final, self.path = final, final.with_name(f"{final.name}.part")
        self._record = final.with_name(f"{final.name}.part.json")
        self._about = json.loads(json.dumps(about))
        self._at: tuple[int, int, dict[str, Any]] = (0, 0, {})  # bytes, their CRC-32 and the caller's state
        self.damaged = False
        self._file = self._opened()
        try:
            self._take_up()
        except BaseException:
            os.close(self._file)
            raise
        self._synced = time.monotonic()

    def __enter__(self) -> "PartFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
                 ) -> None:
        if kind is not None and self.path.exists():
            with contextlib.suppress(InputError):  # the first error is the one to tell of
                self.commit()
        os.close(self._file)

    @property
    def state(self) -> dict[str, Any]:
        """What the caller has said with the last append, JSON values; empty in a new file."""
        return self._at[2]

    def append(self, data: bytes, state: Mapping[str, Any]) -> None:
        """Writes bytes at the end; `state` is theirs, and is had again together with them or not at all.

        Raises:
          InputError: the disk refuses; what was written before stays.
        """
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view):]
        except OSError as error:
            raise self._refused(error) from None
        written, crc, _ = self._at
        self._at = written + len(data), zlib.crc32(data, crc), dict(state)  # one name, so a signal finds it old or new
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Has all that was appended on disk, and writes down how far that is; raises InputError where it cannot."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._refused(error) from None
        self._write_record()
        self._synced = time.monotonic()

    def rename(self) -> None:
        """Makes the part the complete file, in place of one that was there; raises InputError where it cannot."""
        try:
            os.ftruncate(self._file, self._at[0])
            os.fsync(self._file)
            os.replace(self.path, self.final)
            sync_folder(self.final.parent)
            self._record.unlink(missing_ok=True)
        except OSError as error:
            raise self._refused(error) from None

    def discard(self) -> None:
        """Deletes the part."""
        for path in (self.path, self._record):
            path.unlink(missing_ok=True)

    def _opened(self) -> int:
        try:
            opened = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._refused(error) from None
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            raise InputError(f"expected a file that no other process writes, received {self.path}; try waiting for "
                             "it, or another name") from None
        except OSError:  # a file system without locks
            pass
        return opened

    def _take_up(self) -> None:
        """Finds where the last process has ended: what it wrote down is kept, the rest is cut off."""
        size = os.fstat(self._file).st_size
        known = self._read_record()
        if known is None:
            if size and not self._record.exists():
                raise InputError(f"expected no file {self.path}, or one that this program wrote, received one without "
                                 f"{self._record.name}; try deleting it, or another name")
            self.damaged = size > 0
        elif known["about"] != self._about:
            others = [name for name in {**known["about"], **self._about}
                      if known["about"].get(name) != self._about.get(name)]
            raise InputError(f"{self.path} holds the beginning of other work (other {', '.join(others)}); expected the "
                             "command that began it, try that one, another name, or deleting the file")
        elif self._is_whole(known["bytes"], known["crc"]):
            self._at = known["bytes"], known["crc"], known["state"]
        else:
            self.damaged = True
        try:
            os.ftruncate(self._file, self._at[0])
            os.lseek(self._file, self._at[0], os.SEEK_SET)
        except OSError as error:
            raise self._refused(error) from None
        self._write_record()  # before the first byte, so that every part has its record

    def _read_record(self) -> dict[str, Any] | None:
        """Returns what the record says; None where there is none, or it makes no sense."""
        try:
            known = json.loads(self._record.read_text(encoding="utf-8"))
            kinds = {"about": dict, "bytes": int, "crc": int, "state": dict}
            return known if all(isinstance(known[name], kind) for name, kind in kinds.items()) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write_record(self) -> None:
        record = {"about": self._about, **dict(zip(("bytes", "crc", "state"), self._at, strict=True))}
        write_atomically(self._record, json.dumps(record).encode())

    def _is_whole(self, size: int, crc: int) -> bool:
        os.lseek(self._file, 0, os.SEEK_SET)
        found, left = 0, size
        while left > 0:
            piece = os.read(self._file, min(left, _PIECE))
            if not piece:
                return False
            found, left = zlib.crc32(piece, found), left - len(piece)
        return left == 0 and found == crc

    def _refused(self, error: OSError) -> InputError:
        return InputError(f"cannot write {self.path}: {error.strerror or error}; expected a writable folder with free "
                          "space, try making room: the same command then goes on where this one ended")
