"""Checkpoints are fetched when asked for, whole, and only if their hash fits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from medsam_tune.cli import bundle_folder, main
from medsam_tune.data.checks import DataError
from medsam_tune.sam.build import ARCHITECTURES
from medsam_tune.weights import download, published

CONTENT = b"weights" * 1000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves tmp_path/web on this machine."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "sam.pth").write_bytes(CONTENT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "web")) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture
def bundle(tmp_path: Path, server: str) -> Callable[..., Path]:
    """A bundle that lists one file of the server."""

    def make(file: str = "sam.pth", content: bytes = CONTENT) -> Path:
        folder = tmp_path / "bundle"
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        entry = {
            "path": "models/vit_b/sam.pth",
            "url": f"{server}/{file}",
            "hash_val": hashlib.sha256(content).hexdigest(),
            "hash_type": "sha256",
        }
        (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry]}))
        return folder

    return make


def test_a_file_comes_whole_and_is_kept(
    bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = download("vit_b", bundle(), tmp_path / "checkpoints")
    assert path == tmp_path / "checkpoints" / "sam.pth"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["sam.pth"]
    monkeypatch.setattr("medsam_tune.weights.download_url", None)  # a second time would fail
    assert download("vit_b", bundle(), tmp_path / "checkpoints") == path


def test_row_55_other_bytes_are_not_kept(bundle: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(
        DataError, match=r"/sam\.pth: what came has another sha256 than [0-9a-f]{64}"
    ):
        download("vit_b", bundle(content=b"other"), folder)
    assert list(folder.iterdir()) == []
    (folder / "sam.pth").write_bytes(CONTENT[:100])
    with pytest.raises(DataError, match=r"sam\.pth: 100 bytes whose sha256 is not [0-9a-f]{64}"):
        download("vit_b", bundle(), folder)
    assert (folder / "sam.pth").read_bytes() == CONTENT[:100]  # the user's to delete


def test_no_way_to_the_server(bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"/gone\.pth: cannot be fetched .*404.* put it at .*sam\.pth"
    ):
        download("vit_b", bundle("gone.pth"), tmp_path / "checkpoints")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_unknown_names_and_bundles(bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no checkpoint of 'vit_x' is listed; listed: vit_b\."):
        download("vit_x", bundle(), tmp_path)
    with pytest.raises(DataError, match=r"large_files\.yml: is not there"):
        published(tmp_path)


def test_the_command_says_what_comes_next(
    bundle: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["download", "vit_b", "--output", str(tmp_path / "c"), "--bundle", str(bundle())]
    monkeypatch.setattr("sys.argv", ["medsam-tune", *words])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert f"train lora --model vit_b --checkpoint {tmp_path / 'c' / 'sam.pth'}" in out
    monkeypatch.setattr("sys.argv", ["medsam-tune", "download", "nano"])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 1
    assert "no checkpoint of 'nano' is listed; listed: vit_b, vit_l" in capsys.readouterr().err


def test_what_is_shipped_is_well_formed() -> None:
    for name, entry in published(bundle_folder("volume")).items():
        assert name in ARCHITECTURES
        assert entry.url.startswith("https://")
        assert entry.url.endswith(entry.file)
        assert len(bytes.fromhex(entry.sha256)) == 32
