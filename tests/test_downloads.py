"""Checkpoints are fetched when asked for, whole, and only if their hash fits."""

from __future__ import annotations

import hashlib
import logging
import shlex
import socket
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser, download_large_files

from medsam_tune import downloads
from medsam_tune.bundle import bundle_folder
from medsam_tune.downloads import choose, download, published
from medsam_tune.errors import DataError
from medsam_tune.sam.build import ARCHITECTURES

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()

Serve = Callable[..., str]
Bundle = Callable[..., Path]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Servers on this machine, by handler; their addresses."""
    running: list[ThreadingHTTPServer] = []

    def start(handler: Any) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def web(serve: Serve, tmp_path: Path) -> str:
    """Address of a server of tmp_path/web, where sam.pth lies."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "sam.pth").write_bytes(CONTENT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    return serve(partial(Quiet, directory=tmp_path / "web"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle that lists the checkpoint at an address as vit_b's."""

    def make(url: str, **changes: object) -> Path:
        folder = tmp_path / "my bundle"
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        entry = {
            "path": "models/vit_b/sam.pth",
            "url": url,
            "hash_val": SHA256,
            "hash_type": "sha256",
            **changes,
        }
        details = {"vit_b": {"bytes": len(CONTENT)}}
        listing = yaml.safe_dump({"large_files": [entry], "details": details})
        (folder / "large_files.yml").write_text(listing)
        return folder

    return make


def replies(*parts: bytes, then: Callable[[], object] = lambda: None) -> type:
    """A handler that sends these bytes in the place of an answer, and then does something."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            for part in parts:
                self.wfile.write(part)
            self.wfile.flush()
            then()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def test_a_file_comes_whole_and_is_kept(
    web: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = choose("vit_b", bundle(f"{web}/sam.pth"))
    path, kept = download(entry, tmp_path / "checkpoints")
    assert (path, kept) == (tmp_path / "checkpoints" / "sam.pth", False)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["sam.pth"]
    monkeypatch.setattr(downloads, "download_url", None)  # a second time would fail
    assert download(entry, tmp_path / "checkpoints") == (path, True)


def test_a_host_that_publishes_md5_alone(web: str, bundle: Bundle, tmp_path: Path) -> None:
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    entry = choose("vit_b", bundle(f"{web}/sam.pth", hash_val=md5, hash_type="md5"))
    path, _ = download(entry, tmp_path)
    path.write_bytes(b"other")
    with pytest.raises(DataError, match=rf"sam\.pth: 5 bytes that .* with md5 {md5}"):
        download(entry, tmp_path)


def test_a_file_without_a_hash_is_not_fetched(web: str, bundle: Bundle) -> None:
    with pytest.raises(DataError, match=r"large_files\.yml: models/vit_b/sam\.pth has no hash_val"):
        published(bundle(f"{web}/sam.pth", hash_val=""))


def test_row_55_a_damaged_file_is_refused_and_left_to_its_owner(
    bundle: Bundle, tmp_path: Path
) -> None:
    entry = choose("vit_b", bundle("http://127.0.0.1:9/sam.pth"))
    for damaged in (b"", CONTENT[:100]):
        (tmp_path / "sam.pth").write_bytes(damaged)
        with pytest.raises(
            DataError,
            match=rf"sam\.pth: {len(damaged)} bytes that are not the published ones, 7000 bytes "
            rf"with sha256 {SHA256}\. Delete it and run this again, or choose another --output",
        ):
            download(entry, tmp_path)
        assert (tmp_path / "sam.pth").read_bytes() == damaged


FAULTS: dict[str, tuple[bytes, str]] = {
    "login page": (
        b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>Who are you?</html>",
        rf"/sam\.pth: what came is not what was published, 7000 bytes with sha256 {SHA256}; it wa",
    ),
    "cut": (
        b"HTTP/1.0 200 OK\r\nContent-Length: 7000\r\n\r\n" + CONTENT[:100],
        r"/sam\.pth: cannot be fetched \(.*got only 100 out of 7000 bytes",
    ),
    "cut in a chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
        r"/sam\.pth: cannot be fetched \(IncompleteRead",
    ),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", r"/sam\.pth: cannot be fetched \(SSH-2\.0-OpenSSH\)\. Fe"),
    "no answer": (b"", r"/sam\.pth: cannot be fetched \(Remote end closed connection"),
    "not there": (
        b"HTTP/1.0 404 Not Found\r\n\r\n",
        r"/sam\.pth: cannot be fetched \(HTTP Error 404: Not Found\)",
    ),
}


@pytest.mark.parametrize(("reply", "message"), FAULTS.values(), ids=FAULTS)
def test_what_does_not_come_whole_leaves_nothing(
    serve: Serve, bundle: Bundle, tmp_path: Path, reply: bytes, message: str
) -> None:
    entry = choose("vit_b", bundle(f"{serve(replies(reply))}/sam.pth"))
    with pytest.raises(DataError, match=message) as refused:
        download(entry, tmp_path / "checkpoints")
    assert "\n" not in str(refused.value)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_no_network_says_how_to_fetch_it_by_hand(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, logged = logging.getLogger("monai.apps"), StringIO()
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(logged)])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path / "checkpoints"
    with pytest.raises(
        DataError,
        match=rf"^http://127\.0\.0\.1:{port}/sam\.pth: cannot be fetched \(.*refused.*\)\. "
        rf"Fetch it on another machine, put it at {folder}/sam\.pth and run this again; its sha256 "
        rf"is {SHA256}\.$",
    ):
        download(choose("vit_b", bundle(f"http://127.0.0.1:{port}/sam.pth")), folder)
    assert list(folder.iterdir()) == []


def test_a_server_that_falls_silent_is_given_up(
    serve: Serve, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Event()
    head = b"HTTP/1.0 200 OK\r\nContent-Length: 7000\r\n\r\n"
    url = serve(replies(head, CONTENT[:100], then=lambda: done.wait(30)))
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.2)
    with pytest.raises(DataError, match=r"/sam\.pth: cannot be fetched \(timed out\)"):
        download(choose("vit_b", bundle(f"{url}/sam.pth")), tmp_path / "checkpoints")
    done.set()
    assert socket.getdefaulttimeout() is None
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_interrupted_transfer_leaves_nothing_and_starts_again(
    web: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_url: str, path: Path, *_: object) -> None:
        path.write_bytes(CONTENT[:100])
        raise KeyboardInterrupt  # Ctrl-C

    entry = choose("vit_b", bundle(f"{web}/sam.pth"))
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "download_url", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download(entry, tmp_path / "checkpoints")
    assert list((tmp_path / "checkpoints").iterdir()) == []
    path, _ = download(entry, tmp_path / "checkpoints")
    assert path.read_bytes() == CONTENT


def test_a_folder_or_a_disk_that_cannot_take_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = choose("vit_b", bundle("http://127.0.0.1:9/sam.pth"))
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"file: no such folder can be made \(File exists\); choose another --out"
    ):
        download(entry, tmp_path / "file")
    with monkeypatch.context() as patch:  # root may write anywhere
        patch.setattr("os.access", lambda *_: False)
        with pytest.raises(DataError, match=r"checkpoints: cannot be written to; choose another"):
            download(entry, tmp_path / "checkpoints")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "download_url", full_disk)
    with pytest.raises(DataError, match=r"sam\.pth: no space left; 7000 bytes must fit .* TMPDIR"):
        download(entry, tmp_path / "checkpoints")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_unknown_names_and_bundles(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no checkpoint of 'vit_x' is listed; listed: vit_b \(0 M"):
        choose("vit_x", bundle("http://127.0.0.1:9/sam.pth"))
    with pytest.raises(DataError, match=r"large_files\.yml: is not there"):
        published(tmp_path)


Command = Callable[..., tuple[int, str, str]]


def test_the_command_says_what_comes_next(
    tune: Command, web: str, bundle: Bundle, tmp_path: Path
) -> None:
    folder, path = bundle(f"{web}/sam.pth"), tmp_path / "my weights" / "sam.pth"
    words = ("download", "vit_b", "--output", path.parent, "--bundle", folder)
    for said in ("fetched", "was there"):
        code, out, err = tune(*words)
        assert code == 0
        assert f"{path}: {said}, its sha256 as published." in out
        following = err.strip().splitlines()[-1]
        assert shlex.split(following) == shlex.split(
            f"next: medsam-tune train lora --model vit_b --checkpoint '{path}' "
            f"--datalist datalist.json --output runs/lora --bundle '{folder}'"
        )


@pytest.mark.parametrize("name", ["vit_b", "medsam"])
def test_what_comes_next_can_be_typed(
    tune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "download", lambda entry, folder: (folder / entry.file, False))
    code, _, err = tune("download", name)
    assert code == 0
    code, _, err = tune(*shlex.split(err.strip().splitlines()[-1])[2:])
    assert code == 1
    assert "no such datalist" in err.splitlines()[-1]  # the options were read


def test_a_fault_is_one_line_and_exit_code_1(
    tune: Command, web: str, bundle: Bundle, tmp_path: Path
) -> None:
    words = ("download", "vit_b", "--output", tmp_path / "c", "--bundle")
    for file, message in (("sam.pth", "what came is not what was"), ("x.pth", "cannot be fetched")):
        code, _, err = tune(*words, bundle(f"{web}/{file}", hash_val="0" * 64))
        assert code == 1
        (line,) = [each for each in err.splitlines() if each.startswith("medsam-tune: ")]
        assert message in line
        assert list((tmp_path / "c").iterdir()) == []
    code, _, err = tune("download", "nano")
    assert code == 1
    assert (
        "no checkpoint of 'nano' is listed; listed: vit_t (39 MiB), vit_b (358 MiB), vit_l (" in err
    )


def test_what_is_shipped_is_well_formed() -> None:
    bundle = bundle_folder("volume")
    known = published(bundle)
    assert known.keys() >= {"vit_t", "vit_b", "vit_l", "vit_h"}
    for name, entry in known.items():
        words = shlex.split(entry.options)
        assert words[0] == "--model"
        assert words[1] in ARCHITECTURES
        assert name == words[1] or name not in ARCHITECTURES
        for setting in words[3::2]:
            assert f"\n{setting.partition('=')[0]}:" in (bundle / "configs/train.yaml").read_text()
        assert entry.url.startswith("https://")
        assert entry.url.endswith(entry.file)
        assert entry.hash_type == ("md5" if "zenodo.org" in entry.url else "sha256")
        assert len(bytes.fromhex(entry.hash_val)) == {"md5": 16, "sha256": 32}[entry.hash_type]
        assert entry.size is not None
        assert entry.size > 2**25


def test_monai_reads_the_list_too(
    web: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle(f"{web}/sam.pth")
    download_large_files(str(folder))
    assert (folder / "models" / "vit_b" / "sam.pth").read_bytes() == CONTENT
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("monai.bundle.scripts.download_url", lambda **entry: asked.append(entry))
    shipped = bundle_folder("volume")
    download_large_files(str(shipped))
    assert [each["url"] for each in asked] == [e.url for e in published(shipped).values()]
    for each in asked:
        assert Path(each["filepath"]).parents[1] == shipped / "models"
    assert ConfigParser.load_config_file(shipped / "large_files.yml")["large_files"]
