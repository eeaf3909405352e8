from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
import warnings

import numpy as np
import pytest
import torch

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.prompts import boxes_from_masks
from medsam_tune.slices import store as slices
from medsam_tune.slices.entries import MARKER, read_entry
from medsam_tune.slices.intensity import Percentiles, Window, full_range
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from tests.scans import LABELS, SHAPE, small_scan, write_nifti

WINDOW = Window(100, 200)
FORK = multiprocessing.get_context("fork")  # a fresh interpreter takes seconds to import torch


def test_slices_are_windowed_lps(prepared):
    case = prepared[0]
    array, ids = small_scan()
    lps = array[::-1, ::-1]  # the file is RAS
    expected = np.rint(np.clip(lps / 200, 0, 1) * 255).astype(np.uint8)
    assert case.shape == (6, 12, 10)
    for k in range(6):
        np.testing.assert_array_equal(case.image_slice(k), expected[None, :, :, k].swapaxes(1, 2))
        np.testing.assert_array_equal(case.label_slice(k), ids[::-1, ::-1, k].T)
    np.testing.assert_array_equal(case.image()[2], case.image_slice(2))
    np.testing.assert_array_equal(case.label()[2], case.label_slice(2))
    assert case.image().dtype == case.label().dtype == np.uint8


@pytest.mark.parametrize("neighbours", [False, True])
def test_a_fine_window_is_float16_on_disk(tmp_path, make_case, neighbours):
    """CT by its full range keeps steps of 2 HU, of which 8 bits would make one."""
    array, _ = small_scan()
    values = (array * 20 - 1024).round()  # 0 to 4096 HU above air
    rules = ScanRules(full_range(), neighbours=neighbours)
    (case,) = SliceStore(tmp_path / "s", rules, LABELS).prepare([make_case(image=values)], False)
    stored = json.loads((case.path / "image" / "zarr.json").read_text())
    assert stored["data_type"] == "float16"
    assert case.image().dtype == case.image_slice(1).dtype == np.float16
    lps = values[::-1, ::-1].transpose(2, 1, 0)  # (Z, H, W)
    found = case.image()[:, 1 if neighbours else 0].astype(np.float64) / 255 * 4095 - 1024
    expected = lps.clip(-1024, 3071)
    assert np.abs(found - expected).max() <= 1.01
    assert len(np.unique(found)) > 256
    np.testing.assert_array_equal(case.image()[2], case.image_slice(2))
    assert 0 <= case.image().min() < case.image().max() <= 255


def test_what_a_case_tells(prepared):
    case = prepared[1]
    assert (case.id, case.has_label) == ("b", True)
    assert case.labels_in_slice == [(), (1,), (1, 2), (1, 2), (1,), ()]


def test_a_case_knows_its_tight_boxes(store, make_case):
    ids = small_scan()[1]
    ids[:5, :, 2] = ids[:, 7:, 3] = 0
    (case,) = store.prepare([make_case(label=ids)], progress=False)
    label = torch.from_numpy(case.label().astype(np.int64))
    for i in (1, 2):
        slices, boxes = case.tight(i)
        assert slices.tolist() == [k for k in range(6) if (label[k] == i).any()]
        for k, box in zip(slices, boxes, strict=True):
            assert box.tolist() == boxes_from_masks(label[k] == i).tolist()
            assert list(case.boxes[k][i]) == box.tolist()
    assert len(np.unique(case.tight(1)[1], axis=0)) > 1


@pytest.mark.parametrize("count", [1, 300])
def test_files_do_not_grow_with_slices(store, make_case, count):
    volume = np.ones((4, 4, count), np.float32)
    case = make_case(image=volume, label=volume.astype(np.uint8))
    (prepared,) = store.prepare([case], progress=False)
    assert prepared.shape == (count, 4, 4)
    files = sorted(f.relative_to(prepared.path).as_posix() for f in _files(prepared.path))
    assert files == [
        "files.json",
        "image/c/0/0/0/0",
        "image/zarr.json",
        "label/c/0/0/0",
        "label/zarr.json",
        "zarr.json",
    ]


def test_label_ids_above_255(tmp_path, make_case):
    label = small_scan()[1].astype(np.int16)
    label[label == 2] = 300
    labels = {1: "liver", 300: "spleen"}
    (case,) = SliceStore(tmp_path / "s", ScanRules(WINDOW), labels).prepare(
        [make_case(label=label)], False
    )
    assert case.label().dtype == np.uint16
    assert case.label().max() == 300
    assert case.labels_in_slice[2] == (1, 300)


@pytest.mark.parametrize("highest", [40_000, 70_000, 2**31 - 1])
def test_row_76_label_ids_of_any_size(tmp_path, make_case, highest):
    label = small_scan()[1].astype(np.int32)
    label[label == 2] = highest
    store = SliceStore(tmp_path / "s", ScanRules(WINDOW, spacing=(4, 0, 0)), {1: "a", highest: "b"})
    (case,) = store.prepare([make_case(label=label)], False)
    assert case.label().dtype == (np.uint16 if highest < 65536 else np.uint32)
    assert set(np.unique(case.label())) == set(np.unique(case.truth())) == {0, 1, highest}
    assert case.labels_in_slice[2] == (1, highest)


def test_case_without_label(store, make_case):
    case = make_case()
    (prepared,) = store.prepare([Case(case.image, None, "p")], progress=False)
    assert prepared.labels_in_slice == [()] * 6
    with pytest.raises(DataError, match="case case_017: has no label; expected one"):
        prepared.label_slice(0)


def test_an_empty_label_is_stored_too(store, make_case):
    (case,) = store.prepare([make_case(label=np.zeros(SHAPE, np.uint8))], progress=False)
    assert (case.path / "label/c/0/0/0").is_file()
    assert not case.label().any()


def test_entries_are_reused(store, make_case, monkeypatch):
    case = make_case()
    first = store.prepare([case], progress=False)[0]
    monkeypatch.setattr("medsam_tune.slices.store.load_case", None)
    second = store.prepare([case], progress=False)[0]
    assert second.path == first.path


def test_row_66_another_source_or_rule_is_another_entry(tmp_path, make_case):
    case = make_case()
    root = tmp_path / "store"
    paths = {SliceStore(root, ScanRules(WINDOW), LABELS).prepare([case], False)[0].path}
    paths.add(SliceStore(root, ScanRules(Percentiles()), LABELS).prepare([case], False)[0].path)
    os.utime(case.image, ns=(1, 1))
    paths.add(SliceStore(root, ScanRules(WINDOW), LABELS).prepare([case], False)[0].path)
    write_nifti(case.image, small_scan(1)[0])
    paths.add(SliceStore(root, ScanRules(WINDOW), LABELS).prepare([case], False)[0].path)
    assert len(paths) == 4


@pytest.mark.parametrize("late", [{"window": 32}, {"squash": True}, {"neighbours": True}])
def test_rules_that_apply_after_the_store_share_its_entries(tmp_path, make_case, late):
    case = make_case()
    late_rules = ScanRules(WINDOW, **late)
    there = SliceStore(tmp_path / "store", late_rules, LABELS).prepare([case], False)[0]
    assert SliceStore(tmp_path / "store", ScanRules(WINDOW), LABELS).find(case).path == there.path
    assert read_entry(there.path, case.id)["rules"] == ScanRules(WINDOW).describe()


@pytest.mark.parametrize(
    "file", ["image/c/0/0/0/0", "label/c/0/0/0", "image/zarr.json", "zarr.json"]
)
@pytest.mark.parametrize("fault", ["flip", "half", "zero", "gone"])
def test_row_65_broken_entries_are_made_again(store, make_case, file, fault):
    case = make_case()
    first = store.prepare([case], progress=False)[0]
    image, label = first.image(), first.label()
    _break(first.path / file, fault)
    with pytest.warns(UserWarning, match=r"case_017-\w+: is damaged") as caught:
        again = store.prepare([case], progress=False)[0]
    assert len(caught) == 1
    np.testing.assert_array_equal(again.image(), image)
    np.testing.assert_array_equal(again.label(), label)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.prepare([case], progress=False)


@pytest.mark.parametrize("fault", ["flip", "half", "zero", "gone"])
def test_a_broken_list_of_files_does_no_harm(store, make_case, fault):
    case = make_case()
    first = store.prepare([case], progress=False)[0]
    _break(first.path / "files.json", fault)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a flipped time is made good by the checksum
        again = store.prepare([case], progress=False)[0]
    np.testing.assert_array_equal(again.image(), first.image())
    assert _unfinished(store) == []


def test_a_copied_store_is_read_again_but_not_made_again(store, make_case, monkeypatch):
    case = make_case()
    first = store.prepare([case], progress=False)[0]
    for file in _files(first.path):
        os.utime(file, (1, 1))
    monkeypatch.setattr("medsam_tune.slices.store.load_case", None)
    store.prepare([case], progress=False)
    _break(first.path / "image/c/0/0/0/0", "flip")
    assert store.find(case) is None


@pytest.mark.parametrize("file", ["image/c/0/0/0/0", "label/c/0/0/0"])
def test_damage_that_keeps_size_and_time_is_found_at_reading(store, make_case, file):
    case = make_case()
    path = store.prepare([case], progress=False)[0].path / file
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    _break(path, "flip")
    os.utime(path, ns=times)
    prepared = store.prepare([case], progress=False)[0]
    with pytest.raises(DataError, match=r"case case_017: .* cannot be read any more .* Delete"):
        prepared.image(), prepared.label()


def test_slices_of_a_deleted_store_are_not_zeros(store, make_case):
    prepared = store.prepare([make_case()], progress=False)[0]
    prepared.image_slice(0)
    shutil.rmtree(prepared.path)
    with pytest.raises(DataError, match=r"case case_017: .* cannot be read any more"):
        prepared.image_slice(1)


def test_row_64_nothing_half_written(store, make_case, monkeypatch):
    case = make_case()
    monkeypatch.setattr(
        "medsam_tune.slices.store.seal", lambda _: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        store.prepare([case], progress=False)
    assert _entries(store) == _unfinished(store) == []


def test_row_64_a_killed_preparation_is_cleaned_up_and_done_again(store, make_case, monkeypatch):
    victim, other = make_case("a"), make_case("b")
    seal = slices.seal
    reached = FORK.Event()

    def hang(_):
        reached.set()
        time.sleep(60)

    monkeypatch.setattr(slices, "seal", hang)
    process = _started(store, victim)
    assert reached.wait(30)
    monkeypatch.setattr(slices, "seal", seal)
    store.prepare([other], progress=False)
    assert len(_unfinished(store)) == 1, "it belongs to a living process"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert store.find(victim) is None
    store.prepare([other], progress=False)
    assert _unfinished(store) == []
    (prepared,) = store.prepare([victim], progress=False)
    assert prepared.label().any()
    assert len(_entries(store)) == 2


@pytest.mark.parametrize("damaged", [False, True])
def test_row_67_processes_that_meet_make_an_entry_once(
    store, make_case, monkeypatch, tmp_path, damaged
):
    case = make_case()
    if damaged:
        _break(store.prepare([case], progress=False)[0].path / "label/c/0/0/0", "half")
    log = tmp_path / "loaded"

    def load(*arguments):
        with log.open("a") as file:
            file.write("once\n")
        time.sleep(0.5)
        return load_case(*arguments)

    monkeypatch.setattr(slices, "load_case", load)
    processes = [_started(store, case) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "once\n"
    assert len(_entries(store)) == 1
    assert _unfinished(store) == []
    prepared = store.find(case)
    np.testing.assert_array_equal(prepared.label()[2], small_scan()[1][::-1, ::-1, 2].T)


def test_an_entry_is_whole_to_readers_while_it_is_made_again(store, make_case, monkeypatch):
    case = make_case()
    prepared = store.prepare([case], progress=False)[0]
    image = prepared.image()
    _break(prepared.path / "label/c/0/0/0", "zero")
    replace, seen = os.replace, []

    def replace_and_read(*paths):
        seen.append(prepared.image())
        replace(*paths)

    monkeypatch.setattr(os, "replace", replace_and_read)
    with pytest.warns(UserWarning, match="is damaged"):
        store.prepare([case], progress=False)
    assert len(seen) >= 6
    for each in seen:
        np.testing.assert_array_equal(each, image)
    assert prepared.label().any()


@pytest.mark.parametrize("jobs", [1, 3])
def test_jobs_keep_the_order_and_the_first_refusal(store, make_case, jobs):
    bad = small_scan()[1]
    bad[0, 0, 0] = 7
    cases = [make_case(name) for name in "ab"]
    assert [p.id for p in store.prepare(cases[::-1], False, jobs)] == ["b", "a"]
    cases = [make_case("c"), make_case("d", label=bad), make_case("e", label=bad)]
    with pytest.raises(DataError, match="case d: label has the values 7"):
        store.prepare(cases, False, jobs)
    assert {name[0] for name in _entries(store)} == {"a", "b", "c"}
    assert _unfinished(store) == []


def test_missing_scan(store, make_case):
    case = make_case()
    case.label.unlink()
    with pytest.raises(DataError, match="case case_017: no such file"):
        store.prepare([case], progress=False)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_can_be_silenced(store, make_case, monkeypatch, progress):
    asked = []
    bar = "medsam_tune.slices.store.tracked"
    monkeypatch.setattr(bar, lambda cases, *_, show: asked.append(show) or cases)
    store.prepare([make_case()], progress=progress)
    assert asked == [progress]


def test_prepared_case_is_picklable(prepared):
    prepared[0].image_slice(0)
    copy = pickle.loads(pickle.dumps(prepared[0]))
    assert copy._arrays == {}
    np.testing.assert_array_equal(copy.image(), prepared[0].image())


# SliceDataset


def _started(store, case):
    process = FORK.Process(target=store.prepare, args=([case], False))
    process.start()
    return process


def _entries(store):
    return [path.name for path in store.root.iterdir() if path.name not in (".making", MARKER)]


def _unfinished(store):
    return [path for path in (store.root / ".making").iterdir() if path.suffix != ".lock"]


def _files(folder):
    return [file for file in folder.rglob("*") if file.is_file()]


def _break(file, fault):
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    broken = {"flip": flipped, "half": content[:middle], "zero": b""}
    file.unlink() if fault == "gone" else file.write_bytes(broken[fault])
