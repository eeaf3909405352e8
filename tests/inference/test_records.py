"""Which files a record says are ours, and what becomes of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsam_tune.errors import DataError
from medsam_tune.files import file_hash, write_json
from medsam_tune.inference.records import (
    begin_record,
    drop_record,
    end_record,
    own_files,
    record_of,
    refuse_foreign,
    refuse_lost,
)


def files(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_text(name)
    return [folder / name for name in names]


def test_a_record_lists_its_files_from_the_start(tmp_path: Path) -> None:
    record = record_of(tmp_path / "m.nii.gz")
    assert record == tmp_path / "m.prediction.json"
    begin_record(record, [tmp_path / "m_1.nii", tmp_path / "m_2.nii"])
    assert not own_files(record)
    (first,) = files(tmp_path, "m_1.nii")
    refuse_foreign(record, [first])  # a killed process wrote it
    end_record(record, {"case": "a"}, [first])
    content = json.loads(record.read_text())
    hashes = {"m_1.nii": file_hash(first)}
    assert content == {"format": 1, "finished": True, "case": "a", "files": hashes}


def test_older_files_go_when_the_new_ones_are_whole(tmp_path: Path) -> None:
    record = tmp_path / "m.prediction.json"
    old, new, mine = files(tmp_path, "m_1.nii", "m_2.nii", "m_3.nii")
    end_record(record, {}, [old])
    begin_record(record, [new])
    assert old.exists()
    assert own_files(record) == {old: None, new: None}
    end_record(record, {}, [new])
    assert (old.exists(), new.exists(), mine.exists()) == (False, True, True)


def test_a_record_of_nothing_is_dropped(tmp_path: Path) -> None:
    record = tmp_path / "m.prediction.json"
    begin_record(record, [tmp_path / "m.nii"])
    (mask,) = files(tmp_path, "m.nii")
    drop_record(record)
    assert record.exists()
    mask.unlink()
    drop_record(record)
    assert not record.exists()


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    record = tmp_path / "m.prediction.json"
    mask, other = files(tmp_path, "m.nii", "m.nrrd")
    with pytest.raises(DataError, match=r"m\.nii: is there already, and no record says that a pr"):
        refuse_foreign(record, [mask])
    end_record(record, {}, [mask])
    refuse_foreign(record, [mask, tmp_path / "gone.nii"])
    with pytest.raises(DataError, match=r"json: is the record of m\.nii, and would be replaced"):
        refuse_lost(record, [other])
    refuse_lost(record, [mask])
    mask.write_text("by hand")
    with pytest.raises(DataError, match=r"m\.nii: is to be made again, and was changed since it"):
        refuse_foreign(record, [mask])


def test_only_files_beside_a_record_are_its_own(tmp_path: Path) -> None:
    record, (outside,) = tmp_path / "out" / "m.prediction.json", files(tmp_path, "a.nii")
    write_json(
        record, {"format": 1, "files": {"../a.nii": None, "m.prediction.json": None, "": None}}
    )
    assert not own_files(record)
    record.write_text("{")
    assert not own_files(record)
    assert outside.exists()
