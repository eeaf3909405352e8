"""Files are there whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from medsam_tune.errors import DataError
from medsam_tune.files import (
    all_written_whole,
    file_hash,
    files_hash,
    folder_written_whole,
    hold_folder,
    is_leftover,
    read_json,
    remove_leftovers,
    written_whole,
)


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
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "holds a JSON list; expected"),
        (b'{"a": {"b": 1, "b": 2}}', r"is not JSON \(the keys 'b' are there twice in one object"),
        (b'{"a": NaN}', r"is not JSON \(the number NaN is not finite"),
        (b'{"a": -Infinity}', r"is not JSON \(the number -Infinity is not finite"),
        (b'{"a": 1e999}', r"is not JSON \(the number 1e999 is not finite"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON"),
        (b'{"a":' * 100_000, "its objects and lists are nested too deeply"),
    ],
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


def test_json_with_a_byte_order_mark_and_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"a": "\\ud83d\\ude00"}', encoding="utf-8")
    assert read_json(path) == {"a": "\U0001f600"}
    monkeypatch.setattr("medsam_tune.files.JSON_LIMIT", 20)
    with pytest.raises(DataError, match=r"a\.json: has 24 bytes; expected at most 20\."):
        read_json(path)
    with pytest.raises(DataError, match=r"none: cannot be read \(No such file or directory\)"):
        read_json(tmp_path / "none")


def test_several_files_are_written_or_none(tmp_path: Path) -> None:
    paths = [tmp_path / "x" / "a", tmp_path / "x" / "b"]

    def write(*texts: str) -> None:
        with all_written_whole(paths) as beside:
            for path, text in zip(beside, texts, strict=False):
                path.write_text(text)
            if len(texts) > 2:
                raise OSError("disk full")

    for texts in (("one", "two", "three"), ("one",)):  # the second forgets a file
        with pytest.raises(OSError, match=r"disk full|No such file"):
            write(*texts)
        assert list((tmp_path / "x").iterdir()) == []
    write("one", "two")
    assert [path.read_text() for path in paths] == ["one", "two"]
    assert sorted((tmp_path / "x").iterdir()) == paths


def test_hashes_of_files_are_of_their_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"x")
    second.write_bytes(b"y")
    assert file_hash(first) == files_hash([first]) == hashlib.sha256(b"x").hexdigest()
    both = files_hash([first, second])
    assert both == files_hash([second, first.rename(tmp_path / "c")])
    second.write_bytes(b"z")
    assert both != files_hash([tmp_path / "c", second])


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    lock = hold_folder(tmp_path, "writes")
    with pytest.raises(DataError, match="another process writes into it; wait for it, or choose"):
        hold_folder(tmp_path, "writes")
    lock.release()
    hold_folder(tmp_path, "writes").release()


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    name = "n" * 60
    killed = pytest.raises(KeyboardInterrupt)
    with killed, written_whole(tmp_path / name) as beside:
        kept = beside.parent.rename(tmp_path / f"{beside.parent.name}_")  # as after a kill
        raise KeyboardInterrupt
    for other in (f".{name}", ".other.x"):
        (tmp_path / other).mkdir()
    (tmp_path / ".link").symlink_to(tmp_path)
    assert is_leftover(kept.name, ["a", name])
    remove_leftovers(tmp_path, ["a", name, "link"])
    assert {path.name for path in tmp_path.iterdir()} == {f".{name}", ".other.x", ".link"}
