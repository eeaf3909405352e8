"""What a run was trained on is kept, compared at a continuation, and never held-out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medsam_tune.cases.datalist import Case
from medsam_tune.errors import DataError
from medsam_tune.runs import RunFolder, RunRecord
from medsam_tune.seen import keep_split, refuse_seen, trained_side
from medsam_tune.slices.store import PreparedCase

RECORD = RunRecord("d.json", "d.slices", None, {}, {}, 0.05, 3)


def scans(*names: str, content: str = "") -> list[tuple[Case, PreparedCase]]:
    """Cases of patients of the same names; each scan has voxels of its own."""
    return [
        (
            Case(Path(f"{name}.nii"), None, patient=name.split("_")[0]),
            PreparedCase(
                path=Path(),
                id=name,
                shape=(1, 1, 1),
                boxes=[],
                has_label=True,
                has_truth=False,
                has_objects=False,
                components=None,
                neighbours=False,
                constant=frozenset(),
                spacing=None,
                axes="LPS",
                content=content or name,
            ),
        )
        for name in names
    ]


def split_run(folder: Path) -> Path:
    """A run that was trained on p1 and validated on p2."""
    (folder / "d.json").write_text("{}")
    record = replace(RECORD, datalist=str(folder / "d.json"))
    run = RunFolder(folder / "run", record)
    run.open()
    keep_split(run, training=scans("p1_a", "p1_b"), validation=scans("p2_a"))
    return run.path


def test_the_longest_side_of_training_is_known(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", RECORD)
    run.open()
    assert trained_side(run.path) is None
    (first, small), (second, large) = scans("p1_a", "p1_b")
    training = [
        (first, replace(small, shape=(9, 30, 20))),
        (second, replace(large, shape=(1, 5, 40))),
    ]
    other = [(one, replace(case, shape=(1, 99, 99))) for one, case in scans("p2_a")]
    keep_split(run, training=training, validation=other)
    assert trained_side(run.path) == 40
    path = run.path / "split.json"
    split = json.loads(path.read_text())
    for one in split["training"]:
        del one["size"]  # as runs of before have it
    path.write_text(json.dumps(split))
    assert trained_side(run.path) is None
    path.write_text("{")
    assert trained_side(run.path) is None


def test_the_split_is_kept(tmp_path: Path) -> None:
    run = RunFolder(split_run(tmp_path), RECORD)
    keep_split(run, training=scans("p1_a", "p1_b"), validation=scans("p2_a"))
    for training, changed in (
        (scans("p1_a", "p1_b", "p3_a"), "p3_a"),
        (scans("p1_a"), "p1_b"),
        (scans("p1_b", "p1_a"), "their order"),  # in which the slices are drawn
        ([*scans("p1_a"), *scans("p1_b", content="p1_b:another label")], "p1_b"),
    ):
        with pytest.raises(DataError, match=f"training cases, scans or labels .*: {changed}"):
            keep_split(run, training=training, validation=scans("p2_a"))
    other = scans("p2_a", content="other voxels")
    with pytest.raises(DataError, match=r"the validation cases, scans or labels are not .*: p2_a"):
        keep_split(run, training=scans("p1_a", "p1_b"), validation=other)


def test_what_was_trained_on_is_never_held_out(tmp_path: Path) -> None:
    run, datalist = split_run(tmp_path), tmp_path / "e.json"
    refuse_seen(run, datalist, scans("p3_a", "p4_a"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    for place in (datalist, tmp_path / "sub" / ".." / "e.json", tmp_path / "link" / "e.json"):
        for seen in ("p1_c", "p2_a"):  # another scan of a patient, and a scan itself
            with pytest.raises(DataError, match=f"e.json: 1 of 2 test cases were .*: {seen}"):
                refuse_seen(run, place, scans("p3_a", seen))
    elsewhere = tmp_path / "other" / "d.json"  # whose patients may have the same names
    refuse_seen(run, elsewhere, scans("p1_c"))
    for content in ("p1_a", "p1_a:another label"):
        with pytest.raises(DataError, match=r"1 of 1 test cases were trained or .*: p9_a"):
            refuse_seen(run, elsewhere, scans("p9_a", content=content))


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"training": [], "validation": 5},
        {"training": ["x"], "validation": []},
        {"training": [{}], "validation": []},
        {"training": [{"case": "a", "patient": "p", "content": []}], "validation": []},
    ],
)
def test_a_damaged_split_holds_nothing_out(tmp_path: Path, content: dict[str, Any]) -> None:
    run = split_run(tmp_path)
    (run / "split.json").write_text(json.dumps(content))
    for use in (
        lambda: refuse_seen(run, tmp_path / "e.json", scans("p3_a")),
        lambda: keep_split(RunFolder(run, RECORD), training=scans("p1_a"), validation=[]),
    ):
        with pytest.raises(DataError, match=r"split.json: is damaged; the split of the training"):
            use()


def test_a_lost_split_is_not_made_up(tmp_path: Path) -> None:
    run = split_run(tmp_path)
    (run / "split.json").unlink()
    (run / "last.pt").write_bytes(b"")
    for use in (
        lambda: refuse_seen(run, tmp_path / "e.json", scans("p3_a")),
        lambda: keep_split(RunFolder(run, RECORD), training=scans("p1_a"), validation=[]),
    ):
        with pytest.raises(DataError, match=r"split.json: no such file"):
            use()
