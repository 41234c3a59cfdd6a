"""Downloads BloodMNIST (28, 64, 128 or 224 pixels a side) once into a cache, resumed and checksummed.

J. Yang et al., "MedMNIST v2", Scientific Data 10 (2023) 41; files and checksums of Zenodo record 10519652, as listed by
the `medmnist` package 3.0.2. Reading the file belongs to `npz`.
"""

import hashlib
import http.client
import os
import pathlib
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from bloodcell.errors import InputError

BASE_URL = "https://zenodo.org/records/10519652/files"
MD5 = {
    28: "7053d0359d879ad8a5505303e11de1dc",
    64: "2b94928a2ae4916078ca51e05b6b800b",
    128: "adace1e0ed228fccda1f39692059dd4c",
    224: "b718ff6835fcbdb22ba9eacccd7b2601",
}

Progress = Callable[[int, int | None], None]  # bytes there are, bytes there will be (None: the server does not say)

_BLOCK = 2**18  # bytes read at a time
_TRIES = 5  # in a row without a new byte
_TIMEOUT = 30.0  # seconds without an answer


def cache_folder() -> pathlib.Path:
    """Returns $BLOODCELL_CACHE, or bloodcell below $XDG_CACHE_HOME, or ~/.cache/bloodcell."""
    own = os.environ.get("BLOODCELL_CACHE")
    if own:
        return pathlib.Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(shared).expanduser() if shared else pathlib.Path.home() / ".cache") / "bloodcell"


def file_of(source: str) -> tuple[int, str]:
    """Returns the side in pixels and the file's name for "bloodmnist" (28) or "bloodmnist:64"; InputError otherwise."""
    _, colon, text = source.partition(":")
    size = 28 if not colon else int(text) if text.isdecimal() else -1
    if size not in MD5:
        raise InputError(f"--data: expected bloodmnist:28, :64, :128 or :224, received '{source}'")
    return size, "bloodmnist.npz" if size == 28 else f"bloodmnist_{size}.npz"


def download(source: str, *, base_url: str = BASE_URL, md5: str | None = None, folder: pathlib.Path | None = None,
             progress: Progress | None = None, pause: float = 1.0) -> pathlib.Path:
    """Returns the cached file of `source`, fetching it first where it is not there.

    A connection that breaks is taken up again where it ended, in this run or the next: the bytes wait in `<name>.part`.

    Args:
      source: "bloodmnist" or "bloodmnist:28/64/128/224".
      base_url: where the files lie; another place of the same files.
      md5: the checksum (hex) to expect; None: the published one.
      folder: where to keep the file; None: `cache_folder()`.
      progress: called with (bytes so far, bytes in all or None); None: lines on standard error.
      pause: seconds before the second try; it doubles with each try that brings nothing.

    Raises:
      InputError: no network, the server refuses, the folder cannot be written, or the checksum is wrong (the file is
        removed then).
    """
    size, name = file_of(source)
    folder = folder or cache_folder()
    path, part = folder / name, folder / f"{name}.part"
    expected = md5 or MD5[size]
    url = f"{base_url}/{name}?download=1"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _fetch(url, part, path, progress or _Lines(name), pause)
            _check(part, expected, url)
            os.replace(part, path)
        else:
            _check(path, expected, url)  # it may have been put there by hand
    except OSError as error:
        raise InputError(f"{source}: expected to keep {name} in {folder}, received {error.strerror or error}; "
                         "try BLOODCELL_CACHE=<a folder that can be written>") from None
    return path


def _check(path: pathlib.Path, expected: str, url: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != expected:
        path.unlink()
        raise InputError(f"{path}: expected MD5 {expected}, received {digest.hexdigest()}; the file was removed, run "
                         f"again to fetch {url}")


def _fetch(url: str, part: pathlib.Path, path: pathlib.Path, progress: Progress, pause: float) -> None:
    tries, wait = 0, pause
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _fetch_rest(url, part, before, progress):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"HTTP status {error.code}"
            if error.code not in (408, 429) and error.code < 500:
                tries = _TRIES  # the server will not change its mind
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError,
                ssl.SSLError, ValueError) as error:
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        after = part.stat().st_size if part.exists() else 0
        tries = 0 if after > before else tries + 1
        wait = pause if after > before else wait
        if tries >= _TRIES:
            raise InputError(f"{url}: expected to download BloodMNIST, received {' '.join(reason.split())}; try again "
                             f"with network (it resumes), or put the file at {path} yourself, or use --data=demo")
        time.sleep(wait)
        wait *= 1 if after > before else 2


def _fetch_rest(url: str, part: pathlib.Path, have: int, progress: Progress) -> bool:
    """Appends what the server sends; returns whether the file is whole as far as the server says."""
    request = urllib.request.Request(url, headers={"User-Agent": "bloodcell"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # nothing lies beyond what we have: whole, or longer than the server's file
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return True
            part.unlink()
            return False
        raise
    with response:
        if have and not (response.status == 206
                         and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")):
            have = 0  # the server ignores Range (or answers another one) and sends the whole file
            if response.status == 206:
                part.unlink()
                return False
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        with open(part, "ab" if have else "wb") as file:
            progress(have, total)
            while block := response.read1(_BLOCK):
                file.write(block)
                have += len(block)
                progress(have, total)
            file.flush()
            os.fsync(file.fileno())
    return total is None or have >= total


class _Lines:
    """Says on standard error how far a download is: every 5 %, and at most once a second."""

    def __init__(self, name: str) -> None:
        self._name, self._percent, self._time = name, -5.0, 0.0

    def __call__(self, done: int, total: int | None) -> None:
        percent = 100.0 * done / total if total else 0.0
        now = time.monotonic()
        if done == total or (percent >= self._percent + 5 and now >= self._time + 1) or now >= self._time + 10:
            self._percent, self._time = percent, now
            of = f" of {total / 1e6:.1f} MB ({percent:.0f} %)" if total else " MB"
            print(f"{self._name}: {done / 1e6:.1f}{of}", file=sys.stderr, flush=True)
