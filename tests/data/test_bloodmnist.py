"""The download against a local HTTP server: resumed, checksummed, kept once, and one line where it fails."""

import contextlib
import hashlib
import http.server
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bloodcell.data import bloodmnist, sources
from bloodcell.errors import InputError

CONTENT = np.random.default_rng(0).bytes(1_000_000)
DIGEST = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `drop_after` ends the first answers early, after that many bytes each."""

    daemon_threads = True

    def __init__(self, *, ranges: bool = True, drop_after: tuple[int, ...] = (),
                 statuses: tuple[int, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.drops, self.statuses = ranges, list(drop_after), list(statuses)
        self.asked: list[tuple[str, str | None]] = []  # (path, Range)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        start = 0
        if wanted and self.server.ranges:
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert match
            start = int(match[1])
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        body = CONTENT[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:self.server.drops.pop(0)] if self.server.drops else body)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the tests' output clean."""


@contextlib.contextmanager
def serving(**kwargs) -> Iterator[tuple[Server, str]]:
    server = Server(**kwargs)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}/files"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def fetch(url: str, folder: pathlib.Path, **kwargs) -> pathlib.Path:
    return bloodmnist.download("bloodmnist:64", base_url=url, folder=folder, pause=0.01, **{"md5": DIGEST, **kwargs})


def test_a_file_is_fetched_once_with_progress_and_kept(tmp_path):
    seen: list[tuple[int, int | None]] = []
    with serving() as (server, url):
        path = fetch(url, tmp_path, progress=lambda done, total: seen.append((done, total)))
        assert path == tmp_path / "bloodmnist_64.npz"
        assert path.read_bytes() == CONTENT
        assert fetch(url, tmp_path) == path
    assert server.asked == [("/files/bloodmnist_64.npz?download=1", None)]
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_dropped_connection_is_taken_up_where_it_ended(tmp_path):
    with serving(drop_after=(400_000, 100_000)) as (server, url):
        assert fetch(url, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=400000-", "bytes=500000-"]


def test_the_next_run_goes_on_from_the_part_file(tmp_path):
    (tmp_path / "bloodmnist_64.npz.part").write_bytes(CONTENT[:700_000])
    with serving() as (server, url):
        assert fetch(url, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["bytes=700000-"]


def test_a_server_without_ranges_is_read_from_the_start(tmp_path):
    (tmp_path / "bloodmnist_64.npz.part").write_bytes(b"other bytes" * 1000)
    with serving(ranges=False) as (_, url):
        assert fetch(url, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [b"", b"too long"])
def test_a_part_file_that_is_whole_or_too_long_ends_well(tmp_path, extra):
    (tmp_path / "bloodmnist_64.npz.part").write_bytes(CONTENT + extra)
    with serving() as (_, url):
        assert fetch(url, tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(tmp_path):
    with serving(statuses=(503, 429)) as (server, url):
        assert fetch(url, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_a_wrong_checksum_removes_the_file_and_says_so(tmp_path):
    with serving() as (_, url), pytest.raises(InputError, match=f"expected MD5 {'0' * 32}, received {DIGEST}"):
        fetch(url, tmp_path, md5="0" * 32)
    assert not list(tmp_path.iterdir())


def test_a_file_put_there_by_hand_is_checked_too(tmp_path):
    (tmp_path / "bloodmnist_64.npz").write_bytes(b"something else")
    with pytest.raises(InputError, match="expected MD5"):
        fetch("http://127.0.0.1:1", tmp_path)
    (tmp_path / "bloodmnist_64.npz").write_bytes(CONTENT)
    assert fetch("http://127.0.0.1:1", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("statuses", [(404,), (500,) * 5])
def test_a_refusing_server_is_one_line_with_url_and_path(tmp_path, statuses):
    with serving(statuses=statuses) as (server, url), pytest.raises(InputError) as caught:
        fetch(url, tmp_path)
    assert f"HTTP status {statuses[0]}" in str(caught.value)
    assert len(server.asked) == len(statuses)


def test_no_network_says_what_to_do_in_one_line(tmp_path):
    with pytest.raises(InputError) as caught:
        fetch("http://127.0.0.1:1/files", tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert "http://127.0.0.1:1/files/bloodmnist_64.npz" in text
    assert str(tmp_path / "bloodmnist_64.npz") in text
    assert "--data=demo" in text


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="BLOODCELL_CACHE"):
        fetch("http://127.0.0.1:1", tmp_path / "file" / "below")


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("BLOODCELL_CACHE", raising=False)
    assert bloodmnist.cache_folder() == tmp_path / "bloodcell"
    monkeypatch.setenv("BLOODCELL_CACHE", str(tmp_path / "own"))
    assert bloodmnist.cache_folder() == tmp_path / "own"


def test_the_four_sizes_have_names_and_others_are_refused():
    assert bloodmnist.file_of("bloodmnist") == bloodmnist.file_of("bloodmnist:28") == (28, "bloodmnist.npz")
    assert bloodmnist.file_of("bloodmnist:224") == (224, "bloodmnist_224.npz")
    for wrong in ("bloodmnist:32", "bloodmnist:", "bloodmnist:x", "bloodmnist:²"):
        with pytest.raises(InputError, match="bloodmnist:28"):
            bloodmnist.file_of(wrong)


def test_a_cached_file_is_read_in_its_three_parts(tmp_path, monkeypatch):
    arrays: dict[str, Any] = {}
    for part, n in {"train": 16, "val": 8, "test": 8}.items():
        arrays[f"{part}_images"] = np.zeros((n, 28, 28, 3), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n) % 8).astype(np.uint8)[:, None]
    np.savez(tmp_path / "bloodmnist.npz", **arrays)
    digest = hashlib.md5((tmp_path / "bloodmnist.npz").read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setenv("BLOODCELL_CACHE", str(tmp_path))
    monkeypatch.setitem(bloodmnist.MD5, 28, digest)
    assert {part: len(images) for part, images in sources.load_parts("bloodmnist").items()} == {
        "train": 16, "val": 8, "test": 8}
