"""Downloads from a server on this machine: every way in which one can go wrong, and what is left on the disk."""

from __future__ import annotations

import fcntl
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from safejax.data import catalog, download, from_arrays, load, loading, read, read_dsrl, reading, write_dsrl
from safejax.data.checks import DatasetError
from safejax.data.download import download as fetch

CONTENT = np.random.default_rng(0).bytes(7000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
STEP = 1000  # bytes after which /cuts hangs up
NEW = ("ETag", '"new"')


class Handler(BaseHTTPRequestHandler):
    """Each path is a server with one habit."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        server.conditions.append(self.headers.get("If-Range"))
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if self.path == "/missing":
            self.send_error(404)
        elif self.path == "/silent":
            server.released.wait(5)  # and hangs up, which is another failure
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
        elif self.path == "/page":
            self.answer(b"<html>sign in</html>", kind="text/html")
        elif self.path == "/other":
            self.answer(CONTENT[::-1])
        elif self.path == "/stops":
            self.answer(CONTENT[::-1], first, STEP)
        elif self.path == "/short":
            self.answer(CONTENT[:-1])
        elif self.path.startswith("/versions"):  # cut until the file changes
            heeded = self.path == "/versions" and self.headers.get("If-Range") != server.version[1]
            count = None if server.version is NEW else STEP
            self.answer(server.content, 0 if heeded else first, count, about=server.version)
        elif self.path == "/whole":  # knows no ranges
            self.answer(CONTENT)
        elif first >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
        else:
            self.answer(CONTENT, first, STEP if self.path == "/cuts" else len(CONTENT))

    def answer(self, content, first=0, count=None, kind="application/octet-stream", about=None):
        self.send_response(206 if first else 200)
        if about:
            self.send_header(*about)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[first:][:count])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.conditions, server.released = [], [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def visible(folder):
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def parts(folder):
    return [path.read_bytes() for path in folder.glob(".*.part")]


@pytest.mark.parametrize("path", ["/good", "/moved", "/whole"])
def test_a_file_arrives_whole(server, tmp_path, path):
    target = fetch([server.url + path], tmp_path / "new" / "a.hdf5", size=7000, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert visible(target.parent) == ["a.hdf5"]
    assert parts(target.parent) == []
    count = len(server.requests)
    fetch([server.url + path], target)  # what is there is not asked for again
    assert len(server.requests) == count


def test_a_cut_download_goes_on_where_it_was_cut(server, tmp_path):
    arguments = ([server.url + "/cuts"], tmp_path / "a.hdf5")
    with pytest.raises(DatasetError, match="cut after 5,000 of 7,000 bytes"):  # five attempts, each brings 1,000
        fetch(*arguments, sha256=SHA256)
    assert visible(tmp_path) == []
    assert parts(tmp_path) == [CONTENT[:5000]]
    assert fetch(*arguments, sha256=SHA256).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, *(f"bytes={first}-" for first in range(1000, 7000, 1000))]


@pytest.mark.parametrize("path", ["/versions", "/versions-unheeded"])
@pytest.mark.parametrize("old", [("ETag", '"old"'), ("Last-Modified", "Sat, 01 Aug 2026 10:00:00 GMT")])
def test_a_file_that_changed_between_two_calls_is_begun_anew(server, tmp_path, path, old):
    server.content, server.version = CONTENT, old
    arguments = ([server.url + path], tmp_path / "a.hdf5")
    with pytest.raises(DatasetError, match="cut after 5,000 of 7,000 bytes"):
        fetch(*arguments)
    assert server.conditions == [None, *[old[1]] * 4]
    assert parts(tmp_path) == [CONTENT[:5000]]
    server.content, server.version = CONTENT[::-1], NEW
    assert fetch(*arguments).read_bytes() == CONTENT[::-1]
    assert server.conditions[5:] == ([old[1]] if path == "/versions" else [old[1], None])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".a.hdf5.lock", ".a.hdf5.sha256", "a.hdf5"]


def test_a_weak_tag_is_no_condition(server, tmp_path):
    server.content, server.version = CONTENT, ("ETag", 'W/"old"')  # equal of files that differ a little
    with pytest.raises(DatasetError, match="cut after 5,000 of 7,000 bytes"):
        fetch([server.url + "/versions-unheeded"], tmp_path / "a.hdf5")
    assert server.conditions == [None] * 5


@pytest.mark.parametrize(("path", "asked"), [("/good", "bytes=3000-"), ("/whole", "bytes=3000-")])
def test_a_server_without_ranges_starts_again(server, tmp_path, path, asked):
    address, target = server.url + path, tmp_path / "a.hdf5"
    download._part_of(target, address).write_bytes(CONTENT[:3000])
    assert fetch([address], target, sha256=SHA256).read_bytes() == CONTENT
    assert server.requests == [(path, asked)]


@pytest.mark.parametrize("size", [None, 7000])
def test_a_part_that_is_complete_is_not_asked_for_again(server, tmp_path, size):
    address, target = server.url + "/good", tmp_path / "a.hdf5"
    download._part_of(target, address).write_bytes(CONTENT)
    assert fetch([address], target, size=size, sha256=SHA256).read_bytes() == CONTENT
    assert len(server.requests) == (1 if size is None else 0)  # 416: nothing follows


@pytest.mark.parametrize(
    ("path", "checks", "words"),
    [
        ("/missing", {}, "HTTP 404 Not Found"),
        ("/silent", {}, "no answer in time"),
        ("/page", {}, "a web page, expected a file"),
        ("/other", {"sha256": SHA256}, f"expected {SHA256[:12]}...; not kept"),
        ("/short", {"size": 7000}, "6,999 bytes, expected 7,000"),
    ],
)
def test_a_failure_is_one_line_and_leaves_no_file(server, tmp_path, path, checks, words):
    with pytest.raises(DatasetError) as raised:
        fetch([server.url + path], tmp_path / "a.hdf5", timeout=0.2, **checks)
    message = str(raised.value)
    assert f"{server.url}{path} (" in message
    assert words in message
    assert f"put the file into {tmp_path}, or give path=" in message
    assert "\n" not in message
    assert visible(tmp_path) == []
    assert parts(tmp_path) == []


def test_the_next_mirror_is_asked_and_gets_no_bytes_of_the_first(server, tmp_path):
    addresses = [server.url + path for path in ("/missing", "/other", "/stops", "/good", "/whole")]
    assert fetch(addresses, tmp_path / "a.hdf5", sha256=SHA256).read_bytes() == CONTENT
    assert [request for request in server.requests if request[0] != "/stops"] == [
        ("/missing", None),
        ("/other", None),
        ("/good", None),
    ]
    assert parts(tmp_path) == []


def test_a_file_that_cannot_fit_is_not_begun(server, tmp_path):
    with pytest.raises(DatasetError, match=r"a.hdf5 needs 1,000,000,000,000,000,000 bytes, .* free; make room"):
        fetch([server.url + "/good"], tmp_path / "a.hdf5", size=10**18)
    assert server.requests == []


def test_a_second_process_waits_for_the_first(server, tmp_path, monkeypatch):
    target, waiting, found = tmp_path / "a.hdf5", threading.Event(), []
    monkeypatch.setattr(download, "print", lambda *_, **__: waiting.set(), raising=False)
    second = threading.Thread(target=lambda: found.append(fetch([server.url + "/good"], target)))
    with (tmp_path / ".a.hdf5.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second.start()
        assert waiting.wait(30)
        target.write_bytes(b"the first's")
    second.join()
    assert found == [target]
    assert target.read_bytes() == b"the first's"
    assert server.requests == []


def test_locate_asks_path_then_file_then_cache_then_network(server, tmp_path, monkeypatch):
    entry = catalog.Entry("Public", "public.hdf5", (server.url + "/good",), 7000, SHA256)
    monkeypatch.setattr(catalog, "find", lambda name: entry if name == "Public" else None)
    monkeypatch.setenv("SAFEJAX_CACHE", str(tmp_path / "cache"))
    mine = tmp_path / "mine.hdf5"
    mine.write_bytes(b"mine")
    assert loading.locate("Public", path=mine) == loading.locate(mine) == mine
    assert server.requests == []
    cached = tmp_path / "cache" / "datasets" / "public.hdf5"
    assert [loading.locate("Public") for _ in range(2)] == [cached, cached]
    assert len(server.requests) == 1
    assert loading.locate("Public", cache=tmp_path / "elsewhere") == tmp_path / "elsewhere" / "public.hdf5"
    cached.write_bytes(CONTENT[:-1])
    with pytest.raises(DatasetError, match=r"6,999 bytes, expected 7,000; delete the file"):
        loading.locate("Public")


@pytest.mark.parametrize("published", [SHA256, None])
def test_a_cached_file_that_changed_is_refused(server, tmp_path, monkeypatch, published):
    entry = catalog.Entry("Public", "public.hdf5", (server.url + "/good",), None, published)
    monkeypatch.setattr(catalog, "find", lambda name: entry)
    cached = loading.locate("Public", cache=tmp_path)
    assert visible(tmp_path) == ["public.hdf5"]
    assert loading.locate("Public", cache=tmp_path) == cached
    changed = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    cached.write_bytes(changed)
    with pytest.raises(DatasetError) as raised:
        loading.locate("Public", cache=tmp_path)
    found = hashlib.sha256(changed).hexdigest()
    origin = "" if published else " as it was downloaded"
    fault = f"SHA-256 {found[:12]}..., expected {SHA256[:12]}...{origin}"
    assert (
        str(raised.value) == f"{cached}: {fault}; delete the file, and it is downloaded again, or give path= of a copy"
    )
    assert cached.read_bytes() == changed
    cached.unlink()
    assert loading.locate("Public", cache=tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize("noted", [None, "", "cut"])
def test_a_cached_file_of_which_no_sum_is_known_is_taken(tmp_path, monkeypatch, noted):
    monkeypatch.setattr(catalog, "find", lambda name: catalog.Entry("Public", "public.hdf5", (), None, None))
    (tmp_path / "public.hdf5").write_bytes(CONTENT)
    if noted is not None:
        (tmp_path / ".public.hdf5.sha256").write_text(noted)
    assert loading.locate("Public", cache=tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("function", [load, read, read_dsrl])
def test_what_fits_into_memory_is_read(tmp_path, monkeypatch, function):
    data = from_arrays(np.ones((9, 2)), np.zeros((9, 1)), np.arange(9), np.zeros(9), np.zeros(9), np.arange(9) == 8)
    write_dsrl(tmp_path / "a.hdf5", data)
    assert load(tmp_path / "a.hdf5").transitions.reward.tolist() == list(range(9))
    monkeypatch.setattr(reading, "available_bytes", lambda: 100)
    with pytest.raises(DatasetError, match=r"would need .*; limit 16 bytes of 100 bytes available \(max_bytes=\)"):
        function(tmp_path / "a.hdf5")
    assert load(tmp_path / "a.hdf5", max_bytes=10_000).transitions.reward.shape == (9,)


def test_what_is_nowhere_is_refused_in_one_line(tmp_path):
    with pytest.raises(DatasetError, match=r"gone.hdf5: no such file; check path="):
        loading.locate("BallCircle", path=tmp_path / "gone.hdf5")
    with pytest.raises(DatasetError, match=r"BalCircle: no such file, and no name of .*; nearest: BallCircle"):
        loading.locate("BalCircle")
    for name in ("y" * 300, "no\nsuch", "nul\0"):
        with pytest.raises(DatasetError, match="no such file, and no name of") as raised:
            loading.locate(name)
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("spoil", ["file", "file above", "long name", "lock"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, spoil):
    (tmp_path / "file").touch()
    (tmp_path / "lock" / ".a.hdf5.lock").mkdir(parents=True)
    places = {"file above": tmp_path / "file" / "above", "long name": "y" * 300}
    folder = Path(places.get(spoil, tmp_path / spoil)).absolute()
    with pytest.raises(DatasetError) as raised:
        fetch(["http://127.0.0.1:9/a", "http://127.0.0.1:9/b"], folder / "a.hdf5")
    assert str(raised.value).startswith(f"a.hdf5 could not be downloaded: {folder} cannot be written (")
    assert str(raised.value).endswith(
        "Choose another cache=, or give path= of a copy from http://127.0.0.1:9/a or http://127.0.0.1:9/b"
    )


def test_load_refuses_data_of_another_task(tmp_path):
    data = from_arrays(np.ones((9, 2)), np.zeros((9, 1)), np.arange(9), np.zeros(9), np.zeros(9), np.arange(9) == 8)
    write_dsrl(tmp_path / "a.hdf5", data, {"safejax": "0.1.0", "task": "ball_run", "renderer": None})
    assert load(tmp_path / "a.hdf5", task="ball_run").transitions.reward.shape == (9,)
    with pytest.raises(DatasetError, match="collected in 'ball_run', expected 'car_run'"):
        load(tmp_path / "a.hdf5", task="car_run")
    with pytest.raises(DatasetError, match="no pixels, expected pixels drawn by 'safejax'"):
        load(tmp_path / "a.hdf5", task="ball_run", renderer="safejax")
    with pytest.raises(ValueError, match="renderer is 'safejax' without task="):
        load(tmp_path / "a.hdf5", renderer="safejax")
    write_dsrl(tmp_path / "b.hdf5", data)
    with pytest.warns(UserWarning, match="b.hdf5 says neither task nor renderer; that it is of ball_run is taken on"):
        load(tmp_path / "b.hdf5", task="ball_run")
