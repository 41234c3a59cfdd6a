"""A disk that fails, or a machine that dies, at a chosen write, fsync, rename or deletion."""

import builtins
import contextlib
import os
import pathlib
from typing import Any

from bloodcell import files


class Killed(BaseException):
    """What a kill looks like from inside."""


class Disk:
    """Stands between bloodcell and the disk, and fails at the n-th operation of a kind.

    After a kill nothing reaches the disk any more, not even the tidying up: as when the machine has lost its power.

    Attributes:
      counts: of each kind of operation, how many there were.
      dead: a kill has happened.
    """

    KINDS = ("write", "fsync", "replace", "unlink")

    def __init__(self, monkeypatch, kind="", number=0, error=None):
        self.counts = dict.fromkeys(self.KINDS, 0)
        self.dead = False
        self._kind, self._number, self._error = kind, number, error
        self._real: dict[str, Any] = {"open": builtins.open, "fsync": os.fsync, "replace": os.replace,
                                      "unlink": pathlib.Path.unlink}
        monkeypatch.setattr(files, "open", self._open, raising=False)
        monkeypatch.setattr(os, "fsync", lambda *args: self._do("fsync", *args))
        monkeypatch.setattr(os, "replace", lambda *args: self._do("replace", *args))
        monkeypatch.setattr(pathlib.Path, "unlink", lambda path, **kwargs: self._do("unlink", path, **kwargs))

    def fails_now(self, kind):
        """Counts an operation, and says whether it is the one."""
        if self.dead:
            raise Killed
        self.counts[kind] += 1
        return kind == self._kind and self.counts[kind] == self._number

    def fail(self):
        if self._error is not None:
            raise self._error
        self.dead = True
        raise Killed

    def _do(self, kind, *args, **kwargs):
        if kind == "unlink" and self.dead:
            return None
        if self.fails_now(kind):
            self.fail()
        return self._real[kind](*args, **kwargs)

    def _open(self, path, mode, *args, **kwargs):
        if self.dead:
            raise Killed
        return _File(self._real["open"](path, mode, *args, **kwargs), self)


class _File:
    """A file of which the failing write reaches the disk by half."""

    def __init__(self, file, disk):
        self._file, self._disk = file, disk

    def write(self, data):
        if self._disk.fails_now("write"):
            data = bytes(data)
            self._file.write(data[:len(data) // 2])
            self._file.flush()
            self._disk.fail()
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(OSError):
            self._file.close()
