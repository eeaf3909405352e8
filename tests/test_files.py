"""Files are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsam_tune.errors import DataError
from medsam_tune.files import folder_written_whole, read_json, written_whole


def fail(path: Path) -> None:
    path.write_text("half")
    raise OSError("disk full")


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with written_whole(path) as beside:
        beside.write_text("old")
    with pytest.raises(OSError, match="disk full"), written_whole(path) as beside:
        fail(beside)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_made_whole_and_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(OSError, match="disk full"), folder_written_whole(folder) as beside:
        fail(beside / "a")
    assert list(tmp_path.iterdir()) == []
    with folder_written_whole(folder) as beside:
        (beside / "a").write_text("whole")
    assert (folder / "a").read_text() == "whole"
    with pytest.raises(FileExistsError, match="is there already"), folder_written_whole(folder):
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[1]", "holds a JSON list; expected")],
)
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.json: {message}"):
        read_json(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_row_93_names_as_long_as_a_disk_allows(tmp_path: Path) -> None:
    for name in ("x" * 255, "スキャン" * 21 + "...", "🫁" * 63):
        with written_whole(tmp_path / name) as beside:
            beside.write_text("a")
        assert (tmp_path / name).read_text() == "a"
        with folder_written_whole(tmp_path / "folders" / name) as folder:
            (folder / "b").touch()
    assert len(list(tmp_path.iterdir())) == 4
