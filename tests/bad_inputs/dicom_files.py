"""Faults of the files of a DICOM series: copies, damaged ones, and what is no scan."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medsam_tune.cases.datalist import Case
from tests.bad_inputs.calls import Pair, load, monai
from tests.bad_inputs.dicom import right_series, series
from tests.bad_inputs.table import BadInput
from tests.dicom_series import COUNT


def handled(*changes: Callable[[Path], object]) -> Callable[[Path], Case]:
    """A maker of a series, some of whose files are then changed."""

    def make(folder: Path) -> Case:
        made = series()(folder)
        for change in changes:
            change(made.image)
        return made

    return make


def copied(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        shutil.copy(path, path.with_stem(f"{path.stem} (1)"))


def again(change: Callable[[Dataset], object]) -> Callable[[Path], None]:
    """The last slice a second time, with its SOPInstanceUID and a change."""

    def write(folder: Path) -> None:
        image = pydicom.dcmread(next(folder.glob(f"*-{COUNT - 1}.dcm")))
        change(image)
        image.save_as(folder / "z.dcm")

    return write


def renamed(image: Dataset) -> None:
    image.PatientName = "Doe^John"


def compressed(image: Dataset) -> None:
    image.compress(pydicom.uid.RLELossless, generate_instance_uid=False)


def other_pixels(image: Dataset) -> None:
    image.PixelData = bytes(len(image.PixelData))


def moved(image: Dataset) -> None:
    image.ImagePositionPatient = [-3, 4, 99]


def noted(count: int) -> Callable[[Pair], None]:
    def check(pair: Pair) -> None:
        right_series()(pair)
        assert pair[0].meta["notes"] == [f"{count} copies of images left out"]

    return check


def cut(where: str, last: bool = True) -> Callable[[Path], None]:
    """A slice at an end of the stack, cut off before a tag."""

    def change(folder: Path) -> None:
        path = next(folder.glob(f"*-{COUNT - 1 if last else 0}.dcm"))
        tag = pydicom.tag.Tag(where)
        content = path.read_bytes()
        at = content.index(np.array([tag.group, tag.element], "<u2").tobytes())
        path.write_bytes(content[:at])

    return change


def emptied(folder: Path) -> None:
    next(folder.glob(f"*-{COUNT - 1}.dcm")).write_bytes(b"")


def emptied_without_ending(folder: Path) -> None:
    for k, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"IM{k:04d}")
    (folder / "IM0099").write_bytes(b"")


def raw_data(folder: Path) -> None:
    """An object without pixels, as scanners export beside images."""
    image = pydicom.dcmread(next(folder.iterdir()))
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66"
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(image, tag)
    image.save_as(folder / "raw.dcm")


def litter(folder: Path) -> None:
    """What a Mac, Windows, an office program and a viewer leave."""
    some = next(folder.iterdir()).read_bytes()
    for name in ("._000.dcm", ".DS_Store", "Thumbs.db", "desktop.ini", "~$000.dcm", "a.dcm.lock"):
        (folder / name).write_bytes(some if name.endswith("lock") else b"\0\5\x16\7")
    for name in ("__MACOSX", ".Trashes"):
        (folder / name).mkdir()
        (folder / name / "000.dcm").write_bytes(some[:300])


INPUTS: tuple[BadInput, ...] = (
    BadInput(
        84,
        "dicom-litter",
        "._000.dcm, .DS_Store, Thumbs.db, lock files and __MACOSX in a DICOM folder",
        handled(litter),
        load,
        monai,
        handled="skipped",
        check=right_series(),
    ),
    *(
        BadInput(
            91,
            name,
            what,
            handled(change),
            load,
            monai,
            handled="taken once; noted",
            check=noted(count),
        )
        for name, what, change, count in (
            ("copies", "every file of a series twice", copied, COUNT),
            ("copy-of-other-header", "a slice twice, one anonymised anew", again(renamed), 1),
            ("copy-compressed", "a slice twice, one of them compressed", again(compressed), 1),
        )
    ),
    *(
        BadInput(
            91,
            name,
            what,
            handled(again(change)),
            load,
            monai,
            r"z\.dcm: has the SOPInstanceUID of \S*-7\.dcm, but other pixels or another place; ",
        )
        for name, what, change in (
            ("same-uid-other-pixels", "two images of one SOPInstanceUID", other_pixels),
            ("same-uid-other-place", "one SOPInstanceUID at two positions", moved),
        )
    ),
    *(
        BadInput(
            39,
            name,
            what,
            handled(change),
            load,
            monai,
            rf"-{k}\.dcm: its DICOM header is cut off or damaged \(\d+ bytes; ",
        )
        for name, what, change, k in (
            ("cut-before-size", "the last slice cut off before its Rows", cut("Rows"), 7),
            (
                "cut-first",
                "the first slice cut off before its position",
                cut("ImagePositionPatient", last=False),
                0,
            ),
            ("cut-in-size", "a slice cut off after its Columns", cut("PixelSpacing"), 7),
            (
                "cut-at-once",
                "a slice cut off before its data set",
                cut("MediaStorageSOPClassUID"),
                7,
            ),
            ("cut-early", "a slice cut off before its SOPClassUID", cut("SOPClassUID"), 7),
        )
    ),
    BadInput(
        39,
        "zero-bytes",
        "a slice of zero bytes",
        handled(emptied),
        load,
        monai,
        r"-7\.dcm: is named as DICOM images are, but is none \(0 bytes\)\. Copy it again, or take",
    ),
    BadInput(
        39,
        "zero-bytes-no-ending",
        "a slice of zero bytes among files without an ending",
        handled(emptied_without_ending),
        load,
        monai,
        r"IM0099: is named as DICOM images are, but is none \(0 bytes\)\.",
    ),
    BadInput(
        40,
        "raw-data",
        "an object without pixels among the images",
        handled(raw_data),
        load,
        monai,
        handled="left out; it is no image",
        check=right_series(),
    ),
)
