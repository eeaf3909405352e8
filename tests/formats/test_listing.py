"""Files of a folder, without clutter, and behind links."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsam_tune.formats.listing import entries_of, files_below, is_clutter


@pytest.mark.parametrize(
    "name",
    "._a.nii .DS_Store thumbs.DB Desktop.ini ~$a.nii .#a.nii #a.nii# a.nii~ .~lock.a# __MACOSX "
    "@eaDir $RECYCLE.BIN lost+found".split(),
)
def test_clutter(name: str) -> None:
    assert is_clutter(Path("x") / name)


@pytest.mark.parametrize("name", ["a.nii", "#1.nii", "~a.nii", "$a.nii", "thumbs.nii", "_.nii"])
def test_what_is_no_clutter(name: str) -> None:
    assert not is_clutter(Path("x") / name)


def test_entries_are_sorted_files_and_folders(tmp_path: Path) -> None:
    for name in ("b", ".c", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "a").mkdir()
    assert [one.name for one in entries_of(tmp_path)] == ["a", "b"]


def test_files_behind_links_are_found_once(tmp_path: Path) -> None:
    deep = tmp_path / "data" / "real" / "deep"
    deep.mkdir(parents=True)
    (deep / "b.nii").touch()
    (tmp_path / "data" / "a.nii").touch()
    (tmp_path / "data" / ".git").mkdir()
    (tmp_path / "data" / ".git" / "c.nii").touch()
    (tmp_path / "data" / "another").symlink_to(deep)  # before its own in the alphabet
    (deep / "up").symlink_to(tmp_path / "data")
    (deep / "nowhere").symlink_to(tmp_path / "gone")
    expected = [tmp_path / "data" / "a.nii", deep / "b.nii"]
    assert files_below(tmp_path / "data") == expected
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert len(files_below(tmp_path / "link")) == 2


def test_linked_folders_outside(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.dcm").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "case").symlink_to(tmp_path / "disk")
    assert files_below(tmp_path / "data") == [tmp_path / "data" / "case" / "a.dcm"]
