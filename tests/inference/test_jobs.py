"""Which scan gets which prompts and which files."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.places import Scans
from medsam_tune.errors import DataError
from medsam_tune.files import write_json
from medsam_tune.inference.jobs import Job, is_done, jobs_for, refuse_taken_jobs
from medsam_tune.inference.records import end_record
from tests.inference.made import LABELS
from tests.scans import small_scan, write_nifti

ABOUT = {"runs": [{"run": "a"}], "labels": {"1": "liver"}, "settings": {"seed": 0}}


def scans_of(folder: Path, *names: str) -> Scans:
    cases = [Case(write_nifti(folder / f"{n}.nii.gz", small_scan()[0]), None, "") for n in names]
    return Scans(tuple(cases), folder)


def test_masks_are_named_after_the_cases(tmp_path: Path) -> None:
    case = Case(tmp_path / "in" / "Doe.nii", None, "", name="case_1")
    scans = Scans((Case(tmp_path / "in" / "a.b.nrrd", None, ""), case), tmp_path)
    first, second = jobs_for(scans, tmp_path / "out", ".nii", None)
    assert (first.mask, first.path) == (tmp_path / "out" / "a.b.nii", "in/a.b.nrrd")
    assert first.record == tmp_path / "out" / "a.b.prediction.json"
    assert (second.mask.name, second.path) == ("case_1.nii", None)
    (only,) = jobs_for(Scans((case,), tmp_path), tmp_path / "m.nii.gz", ".nii", None)
    assert (only.mask.name, only.record.name) == ("m.nii.gz", "m.prediction.json")
    assert [path.name for path in only.targets({1: "liver"}, True, True)] == [
        "m_1_liver.nii.gz",
        "m_probability_1_liver.nii.gz",
        "m.prediction.json",
    ]
    with pytest.raises(
        DataError, match=r"m\.nii: is one mask, and there are 2 scans: a\.b, case_1;"
    ):
        jobs_for(scans, tmp_path / "m.nii", ".nii", None)


def test_a_part_of_an_image_is_refused(tmp_path: Path) -> None:
    """A datalist of --blocks has several of one scene; each would get the mask of all of it."""
    cases = [Case(tmp_path / "scene.tif", None, "", name="b", region=(0, 0, 64, 64))]
    (job,) = jobs_for(Scans(tuple(cases), tmp_path), tmp_path / "out", ".tif", None)
    assert job.problem is not None
    assert "takes a part of" in job.problem


def test_files_of_two_cases(tmp_path: Path) -> None:
    """The probability of a label of one case has the name of another case's mask."""
    scans = scans_of(tmp_path / "in", "m", "m_probability_1_liver")
    jobs = jobs_for(scans, tmp_path, ".nii.gz", None)
    refuse_taken_jobs(jobs, {1: "liver"})
    with pytest.raises(
        DataError,
        match=r"m_probability_1_liver\.nii\.gz: is a file of the cases m and m_probability",
    ):
        refuse_taken_jobs(jobs, {1: "liver"}, probabilities=True)


@pytest.mark.parametrize("first", ["m", "m_1_liver"])
def test_files_of_another_scans_prediction_stay(tmp_path: Path, first: str) -> None:
    """Also where files may be replaced."""
    mask = tmp_path / "m_1_liver.nii.gz"
    mask.touch()
    end_record(tmp_path / f"{first}.prediction.json", {}, [mask])
    jobs = {
        name: jobs_for(scans_of(tmp_path / "in", name), tmp_path / f"{name}.nii.gz", "", None)
        for name in ("m", "m_1_liver")
    }
    separate = {"m": True, "m_1_liver": False}
    for name, of_case in jobs.items():
        flags = {"separate": separate[name], "replace": True}
        if name == first:
            refuse_taken_jobs(of_case, {1: "liver"}, **flags)
            continue
        with pytest.raises(
            DataError,
            match=rf"m_1_liver\.nii\.gz: belongs to the prediction of another scan, {first}\.pre",
        ):
            refuse_taken_jobs(of_case, {1: "liver"}, **flags)


def test_prompts_are_found_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    scans = scans_of(folder, "a", "b", "c", "d", "e")  # prompts may lie beside the scans
    for name in (
        "a.json",
        "b.mrk.json",
        "c.nrrd",
        "d.json",
        "d.nii",
        "a.prediction.json",
        "x.json",
    ):
        (folder / name).touch()
    jobs = jobs_for(scans, tmp_path / "out", ".nii.gz", folder)
    found = [job.prompts and job.prompts.name for job in jobs]
    assert found == ["a.json", "b.mrk.json", "c.nrrd", None, None]
    assert (
        "p has 2 files of prompts for it: d.json, d.nii; expected one: d.json," in jobs[3].problem
    )
    assert jobs[4].problem.startswith(f"case e: {folder} has 0 files of prompts for it: none;")


def test_prompts_of_one_scan(tmp_path: Path) -> None:
    scans, folder = scans_of(tmp_path, "a"), tmp_path / "organs"
    write_nifti(folder / "liver.nii.gz", small_scan()[1])
    for prompts in (folder, tmp_path / "boxes.json"):
        (job,) = jobs_for(scans, tmp_path / "out", ".nii.gz", prompts)
        assert (job.prompts, job.problem) == (prompts, "")
    (folder / "a.json").touch()
    (job,) = jobs_for(scans, tmp_path / "out", ".nii.gz", folder)
    assert job.prompts == folder / "a.json"


def test_a_folder_of_prompts_without_that_of_the_only_scan(tmp_path: Path) -> None:
    scans, folder = scans_of(tmp_path / "scans", "x1"), tmp_path / "p"
    folder.mkdir()
    for name in ("", "y.json", "z.mrk.json"):
        if name:
            (folder / name).touch()
        (job,) = jobs_for(scans, tmp_path / "out", ".nii.gz", folder)
        assert job.problem.startswith(f"case x1: {folder} has 0 files of prompts for it: none;")


def test_names_of_prompts_are_part_of_them(tmp_path: Path) -> None:
    (job,) = jobs_for(scans_of(tmp_path, "a"), tmp_path / "out", ".nii", tmp_path / "Anterior.json")
    for name in ("Anterior", "Posterior"):
        (tmp_path / f"{name}.json").write_text("{}")
    record = {"finished": True, **ABOUT, "masks": ["a.nii"], "scan": {"sha256": job.scan_hash()}}
    job.mask.parent.mkdir()
    job.mask.touch()
    prompts = {"file": "Anterior.json", "sha256": job.prompts_hash()}
    write_json(job.record, {**record, "prompts": prompts})
    assert is_done(job, ABOUT, [job.mask], False, False)
    other = Job(job.case, job.path, job.mask, tmp_path / "Posterior.json")
    assert not is_done(other, ABOUT, [job.mask], False, False)
    organs = tmp_path / "organs"
    organs.mkdir()
    first, second = organs / "a.nii", organs / "b.nii"
    first.write_text("1")
    second.write_text("2")
    of_folder = Job(job.case, job.path, job.mask, organs)
    before = of_folder.prompts_hash()
    first.write_text("2")
    second.write_text("1")
    assert of_folder.prompts_hash() != before


def test_inputs_are_never_outputs(tmp_path: Path) -> None:
    jobs = jobs_for(scans_of(tmp_path, "a", "b"), tmp_path / "out", ".nii.gz", None)
    (tmp_path / "out").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"a\.nii\.gz: is an input; choose another"):
        refuse_taken_jobs(jobs, LABELS, replace=True)
    swapped = [Job(jobs[0].case, "", jobs[1].mask), Job(jobs[1].case, "", jobs[0].mask)]
    with pytest.raises(DataError, match=r"b\.nii\.gz: is an input; choose another folder"):
        refuse_taken_jobs(swapped, LABELS, replace=True)


def test_an_input_is_not_deleted_either(tmp_path: Path) -> None:
    """A mask of an older prediction prompts for the next one of the same name."""
    (job,) = jobs_for(scans_of(tmp_path, "a"), tmp_path / "m.nii.gz", ".nii.gz", None)
    organs = tmp_path / "organs"
    for prompts in (organs / "m_1.nii.gz", organs):
        again = Job(job.case, None, organs / "m.nii.gz", prompts)
        write_nifti(organs / "m_1.nii.gz", small_scan()[1])
        end_record(again.record, {}, [organs / "m_1.nii.gz"])
        with pytest.raises(DataError, match=r"m_1\.nii\.gz: is an input; choose another name"):
            refuse_taken_jobs([again], {7: "x"}, replace=True)


def test_what_is_done(tmp_path: Path) -> None:
    (job,) = jobs_for(scans_of(tmp_path, "a"), tmp_path / "out", ".nii", None)
    record = {"finished": True, **ABOUT, "masks": ["a.nii"], "probabilities": []}
    record |= {"scan": {"sha256": job.scan_hash()}, "prompts": None}

    def done(probabilities: bool = False, replace: bool = False, **changed: object) -> bool:
        write_json(job.record, {**record, **changed})
        return is_done(job, ABOUT, [job.mask], probabilities, replace)

    assert not is_done(job, ABOUT, [job.mask], False, False)
    assert not done()
    job.mask.touch()
    assert done()
    assert not done(probabilities=True)
    assert not done(finished=False)
    assert not done(masks=["a.nii", "b.nii"])
    (tmp_path / "out" / "a.nrrd").touch()
    assert not done(masks=["a.nrrd"])  # another ending was wanted
    assert not done(scan={"sha256": "0"})
    assert not done(scan=None)
    assert not done(prompts={"sha256": "0"})
    with pytest.raises(DataError, match=r"made otherwise: settings::seed was 1, now 0\. Choose"):
        done(settings={"seed": 1})
    assert not done(replace=True, settings={"seed": 1})
    job.case.image.unlink()
    assert not done()
    job.record.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        is_done(job, ABOUT, [job.mask], False, False)
