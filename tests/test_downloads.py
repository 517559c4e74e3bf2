"""Downloads from a server on this machine that breaks off, lies, or is not there."""

import base64
import errno
import hashlib
import http.server
import io
import shutil
import ssl
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import sparse_circuits as sc
from sparse_circuits import downloads
from sparse_circuits.errors import DownloadError, FormatError

FILES = ("beeg_config.json", "encoder.json", "vocab.bpe", "final_model.pt")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves files in memory; can break off, refuse ranges, and give checksums."""

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        data = server.files.get(self.path)
        if data is None:
            self.send_error(404, "Not Found")
            return
        start, tag = 0, f'"{hashlib.sha256(data).hexdigest()[:8]}"'
        wanted = self.headers.get("Range")
        if wanted and server.knows_ranges and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("x-ms-blob-content-md5", server.checksum(data))
        self.end_headers()
        end = len(data) if server.n_byte_at_once is None else start + server.n_byte_at_once
        half = (start + end) // 2
        self.wfile.write(data[start:half])
        if server.hold is not None and self.path.endswith("final_model.pt"):
            server.is_held.set()
            server.hold.wait(30)
        self.wfile.write(data[half:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path / "cache"))
    folder = sc.convert(sc.example(), tmp_path / "release", "release")
    (folder / "sparse_circuits.json").unlink()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {f"/models/csp_yolo1/{name}": (folder / name).read_bytes() for name in (FILES[0], FILES[3])}
    server.files |= {f"/tinypython/{name}": (folder / name).read_bytes() for name in FILES[1:3]}
    server.asked, server.knows_ranges, server.n_byte_at_once, server.hold = [], True, None, None
    server.checksum = lambda data: base64.b64encode(hashlib.md5(data).digest()).decode()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("SPARSE_CIRCUITS_MIRROR", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_released_model_is_fetched_and_opened_by_its_name(server, tmp_path):
    with pytest.raises(FormatError, match="sparse-circuits download csp_yolo1"):
        sc.load("csp_yolo1")
    told = io.StringIO()
    folder = downloads.download("csp_yolo1", progress=told)
    assert folder == tmp_path / "cache/models/csp_yolo1"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "DONE"])
    assert [line.split(":")[0] for line in told.getvalue().splitlines()] == list(FILES)
    model, original = sc.load("csp_yolo1"), sc.load(sc.example())
    assert torch.equal(model(torch.arange(9)[None]), original(torch.arange(9)[None]))
    assert model.tokenizer.encode("self.x = x") == original.tokenizer.encode("self.x = x")
    n_asked = len(server.asked)
    downloads.download("csp_yolo1")
    assert len(server.asked) == n_asked


def test_a_connection_that_breaks_off_is_taken_up_where_it_stopped(server):
    size = len(server.files["/models/csp_yolo1/final_model.pt"])
    server.n_byte_at_once = size // 3 + 1
    folder = downloads.download("csp_yolo1")
    ranges = [r for path, r in server.asked if path.endswith("final_model.pt")]
    assert ranges == [None, f"bytes={size // 3 + 1}-", f"bytes={2 * (size // 3 + 1)}-"]
    assert (folder / "final_model.pt").read_bytes() == server.files["/models/csp_yolo1/final_model.pt"]


def test_what_never_comes_whole_is_absent_and_the_next_call_goes_on(server, tmp_path):
    size = len(server.files["/models/csp_yolo1/final_model.pt"])
    server.n_byte_at_once = size // 10
    with pytest.raises(DownloadError, match=r"broke off after .* run `sparse-circuits download csp_yolo1` again"):
        downloads.download("csp_yolo1")
    folder = tmp_path / "cache/models/csp_yolo1"
    assert not (folder / "final_model.pt").exists()
    with pytest.raises(FormatError, match="not finished; go on with: sparse-circuits download csp_yolo1"):
        sc.load("csp_yolo1")
    n_byte = (folder / "final_model.pt.part").stat().st_size
    assert 0 < n_byte < size
    server.n_byte_at_once, server.asked = None, []
    downloads.download("csp_yolo1")
    assert server.asked == [("/models/csp_yolo1/final_model.pt", f"bytes={n_byte}-")]
    assert sc.load("csp_yolo1").config.n_layer == 2


def test_a_file_that_changed_in_between_is_fetched_from_its_start(server):
    path = "/models/csp_yolo1/final_model.pt"
    server.n_byte_at_once = len(server.files[path]) // 10
    with pytest.raises(DownloadError):
        downloads.download("csp_yolo1")
    server.n_byte_at_once = None
    server.files[path] = server.files[path] + b" "
    assert (downloads.download("csp_yolo1") / "final_model.pt").read_bytes() == server.files[path]


def test_a_part_that_is_longer_than_its_file_is_fetched_from_its_start(server, tmp_path):
    path = "/models/csp_yolo1/final_model.pt"
    server.n_byte_at_once = len(server.files[path]) // 10
    with pytest.raises(DownloadError):
        downloads.download("csp_yolo1")
    part = tmp_path / "cache/models/csp_yolo1/final_model.pt.part"
    part.write_bytes(bytes(len(server.files[path]) + 1))
    server.n_byte_at_once = None
    assert (downloads.download("csp_yolo1") / "final_model.pt").read_bytes() == server.files[path]


def test_two_downloads_at_once_fetch_every_file_once(server, tmp_path):
    server.is_held, server.hold = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(downloads.download, "csp_yolo1")
        assert server.is_held.wait(10)
        told = io.StringIO()
        second = pool.submit(downloads.download, "csp_yolo1", progress=told)
        with pytest.raises(TimeoutError):
            second.result(0.5)
        server.hold.set()
        assert first.result(30) == second.result(30)
    assert len(server.asked) == len(FILES)
    folder = tmp_path / "cache/models/csp_yolo1"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "DONE"])
    assert (folder / "final_model.pt").read_bytes() == server.files["/models/csp_yolo1/final_model.pt"]
    assert "waiting for another download" in told.getvalue()


def test_a_server_without_ranges_serves_too(server):
    server.knows_ranges, server.n_byte_at_once = False, 100_000
    server.files = {path: data[:150_000] for path, data in server.files.items()}
    with pytest.raises(DownloadError, match="broke off"):
        downloads.download("csp_yolo1")
    server.n_byte_at_once = None
    assert (downloads.download("csp_yolo1") / "final_model.pt").stat().st_size == 150_000


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.checksum = lambda _: "AAAA"
    with pytest.raises(DownloadError, match=r"the checksum is .*, the server says AAAA; what came is removed"):
        downloads.download("csp_yolo1")
    assert list((tmp_path / "cache/models/csp_yolo1").iterdir()) == []


def test_an_empty_file_is_whole_and_refused_when_it_is_opened(server):
    server.files["/models/csp_yolo1/final_model.pt"] = b""
    downloads.download("csp_yolo1")
    with pytest.raises(FormatError, match=r"empty .0 bytes."):
        sc.load("csp_yolo1")


def test_a_name_that_was_never_published_is_told_the_nearest(server):
    with pytest.raises(FormatError, match="no model of the release is called 'csp_yollo1'; did you mean csp_yolo1"):
        downloads.download("csp_yollo1")
    with pytest.raises(DownloadError, match=r"models/dense1_1x/beeg_config.json: the server answers 404"):
        downloads.download("dense1_1x")
    assert server.asked == [("/models/dense1_1x/beeg_config.json", None)]


def test_offline_the_command_for_another_machine_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match=r"can't be reached .*`sparse-circuits download csp_yolo1` where there is"):
        downloads.download("csp_yolo1", mirror="http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="can't be reached"):
        downloads.download("csp_yolo1", mirror="no address")


@pytest.mark.parametrize("broken", [OSError(errno.ENETUNREACH, "Network is unreachable"), ssl.SSLEOFError("EOF")])
def test_a_network_that_goes_away_while_reading_is_told_as_one(broken, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise broken

    monkeypatch.setattr(downloads, "_receive", fails)
    with pytest.raises(DownloadError, match=r"can't be reached .*run `do it` where there is a network"):
        downloads.fetch("https://somewhere", tmp_path / "file", command="do it")
    monkeypatch.setattr(downloads, "_receive", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(PermissionError):
        downloads.fetch("https://somewhere", tmp_path / "file", command="do it")


def test_a_disk_that_is_too_small_is_told_before_and_a_full_one_keeps_what_came(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage(9, 9, 10))
    with pytest.raises(DownloadError, match=r"needs .* more, the disk has 10 bytes left"):
        downloads.download("csp_yolo1")
    monkeypatch.undo()
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path / "cache"))
    server.n_byte_at_once = 200_000
    shown = downloads._Meter.show

    def full(self, n_byte):
        if self.part.path.name == "final_model.pt":
            raise OSError(28, "No space left on device")
        shown(self, n_byte)

    monkeypatch.setattr(downloads._Meter, "show", full)
    mirror = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(DownloadError, match=r"the disk is full after .*; make room and run `sparse-circuits download"):
        downloads.download("csp_yolo1", mirror=mirror)
    monkeypatch.setattr(downloads._Meter, "show", shown)
    server.n_byte_at_once = None
    downloads.download("csp_yolo1", mirror=mirror)


def test_a_mirror_may_be_a_folder(server, tmp_path, monkeypatch):
    for path, data in server.files.items():
        file = tmp_path / "mirror" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    folder = downloads.download("csp_yolo1", out=tmp_path / "out", mirror=str(tmp_path / "mirror"))
    assert sc.load(folder).config.n_layer == 2
    shutil.rmtree(tmp_path / "mirror/tinypython")
    with pytest.raises(DownloadError, match="can't be reached"):
        downloads.download("csp_yolo1", out=tmp_path / "other", mirror=str(tmp_path / "mirror"))
