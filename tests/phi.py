"""Names of a patient in scans, labels and their files; and a search of all that a command wrote."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
import zarr
from pydicom.dataset import Dataset

from medsam_tune.synthetic.phantom import write_phantoms
from tests.dicom_series import write_series
from tests.segmentation import masks, write_seg
from tests.server import Outcome, Server

NAME, NUMBER, BORN = "Doe^Jane", "MRN123456", "19700101"
FILE = "Roe_Mary"  # in names of files and folders
_HEADERS = re.compile(rb"doe\W?jane|jane\W?doe|mrn\W?123456|1970\W?01\W?01", re.IGNORECASE)
_FILES = re.compile(rb"roe\W?_?mary", re.IGNORECASE)
_TEXT = f"{NAME} {NUMBER} {BORN}"
# The datalist, its key, and the record of a scan whose path was typed.
_NAMING = ("d.json", "d.key.csv", "mask.prediction.json")


@dataclass
class Swept:
    """What was searched.

    Attributes:
        files: number of files.
        hits: place and finding of each name that should not be there.
    """

    files: int = 0
    hits: list[str] = field(default_factory=list)


def nifti(folder: Path) -> None:
    """Scans and labels with names in every text of the header, and in an extension."""
    _phantoms(folder)
    for path in folder.rglob("*.nii.gz"):
        image = nib.load(path)
        changed = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
        header = changed.header
        header["descrip"], header["db_name"] = _TEXT, NUMBER
        header["intent_name"], header["aux_file"] = NAME, NUMBER
        header.extensions.append(nib.nifti1.Nifti1Extension("comment", _TEXT.encode()))
        nib.save(changed, path)
        assert _HEADERS.search(gzip.decompress(path.read_bytes()))
    content = json.loads((folder / "dataset.json").read_text())
    content |= {"description": _TEXT, "reference": NUMBER, "licence": BORN}
    (folder / "dataset.json").write_text(json.dumps(content))


def nrrd(folder: Path) -> None:
    """The same with key-value pairs of NRRD."""
    _keyed(folder, ".nrrd")


def metaimage(folder: Path) -> None:
    """The same with key-value pairs of MetaImage."""
    _keyed(folder, ".mha")


def dicom(folder: Path) -> None:
    """Studies with names in tags, private tags and the meta header, of images and of SEG."""
    for number in range(4):
        series = folder / f"s{number}" / "ct"

        def change(k: int, image: Dataset, number: int = number) -> None:
            plant(image, number)
            rng = np.random.default_rng([number, k])
            noise = rng.integers(0, 50, image.Rows * image.Columns, dtype=np.int16)
            pixels = np.frombuffer(image.PixelData, np.int16) + noise
            image.PixelData = pixels.astype(np.int16).tobytes()

        write_series(series, change)
        path = write_seg(folder / f"s{number}" / "seg.dcm", series, masks())
        seg = pydicom.dcmread(path)
        plant(seg, number)
        seg.save_as(path)


def named_files(folder: Path) -> None:
    """Names in the names of files and folders alone."""
    folder = folder / f"{FILE}_folder"
    _phantoms(folder)
    content = (folder / "dataset.json").read_text()
    for path in folder.rglob("*.nii.gz"):
        path.rename(path.with_name(path.name.replace("phantom", FILE)))
    (folder / "dataset.json").write_text(content.replace("phantom_", f"{FILE}_"))


KINDS: dict[str, Callable[[Path], None]] = {
    "NIfTI headers": nifti,
    "NRRD keys": nrrd,
    "MetaImage keys": metaimage,
    "DICOM tags": dicom,
    "file names, --anonymous": named_files,
}


def plant(image: Dataset, number: int = 0) -> None:
    """Put the names into a data set."""
    image.PatientName, image.PatientID = NAME, f"{NUMBER}{number}"
    image.PatientBirthDate, image.StudyDescription = BORN, _TEXT
    image.SeriesDescription = image.ImageComments = image.AccessionNumber = NUMBER
    image.PatientComments = image.OperatorsName = image.InstitutionName = NAME
    block = image.private_block(0x0029, NAME, create=True)
    block.add_new(1, "LO", NAME)
    block.add_new(2, "UN", _TEXT.encode())
    image.file_meta.SourceApplicationEntityTitle = NUMBER
    image.file_meta.PrivateInformationCreatorUID = "1.2.3"
    image.file_meta.PrivateInformation = _TEXT.encode()


def _phantoms(folder: Path) -> None:
    write_phantoms(folder, 4, shape=(48, 40, 8), spacing=(7.2, 6.4, 15.0))


def _keyed(folder: Path, suffix: str) -> None:
    nifti(folder)
    for path in folder.rglob("*.nii.gz"):
        image = sitk.ReadImage(path)
        for key in ("PatientName", "Comment", "Name", NUMBER):
            image.SetMetaData(key, _TEXT)
        written = path.with_name(path.name.replace(".nii.gz", suffix))
        sitk.WriteImage(image, written)
        assert _HEADERS.search(written.read_bytes())
        path.unlink()
    description = folder / "dataset.json"
    description.write_text(description.read_text().replace(".nii.gz", suffix))


def try_all(kind: str, folder: Path, server: Server | None = None) -> Swept:
    """Run every command on planted scans, and search what it wrote and printed.

    Args:
        kind: a key of `KINDS`.
        folder: folder for everything; new.
        server: server of another folder may run there already.
    """
    folder.mkdir(parents=True)
    data, out = folder / "data", folder / "out"
    KINDS[kind](data)
    out.mkdir()
    own = server is None
    server = server or Server(folder)
    anonymous = "--anonymous" in kind
    place = data / f"{FILE}_folder" if anonymous else data
    listed, run = out / "d.json", out / "run"
    small = ["--image-size", 64, "--set", "epochs=1", "--set", "batch_size=4"]
    printed: dict[str, str] = {}

    def command(*words: object, codes: tuple[int, ...] = (0,)) -> Outcome:
        outcome = server.one(*words)
        if outcome.code not in codes:
            raise RuntimeError(f"{words}: exit {outcome.code}: {outcome.text[-2000:]}")
        # What was typed may be said again.
        text = outcome.text
        for word in sorted(map(str, words), key=len, reverse=True):
            text = text.replace(word, "")
        printed[f"what {words[0]} prints"] = text
        return outcome

    shares = ["--fractions", 0.5, 0.25, 0.25, *(["--anonymous"] if anonymous else [])]
    command("split", place, "--out", listed, *shares)
    command("check", listed, "--output", out / "check.json", codes=(0, 3, 4))
    command("prepare", listed)
    command("train", "lora", "--datalist", listed, "--output", run, "--no-prompt", *small)
    command("evaluate", "--run", run)
    scan = _a_scan(listed)
    command("predict", scan, "--run", run, "--output", out / "mask.nii.gz")
    command("predict", listed, "--run", run, "--output", out / "masks")
    if not anonymous:
        command("predict", data, "--run", run, "--output", out / "all", "--probabilities")
    command("export", "--run", run, "--format", "onnx", "--output", out / "onnx")
    if own:
        server.close()
    return sweep(out, printed, anonymous)


def _a_scan(datalist: Path) -> Path:
    content = json.loads(datalist.read_text())
    return datalist.parent / content["test"][0]["image"]


def sweep(folder: Path, printed: dict[str, str], anonymous: bool = False) -> Swept:
    """Search all files of a folder, unpacked, and what was printed.

    Args:
        folder: folder of what commands wrote.
        printed: what -> text.
        anonymous: search for names of files too, but in files that shall name them.
    """
    swept = Swept()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        pieces = [name.encode()]
        if path.is_file():
            swept.files += 1
            pieces += unpacked(path.read_bytes())
        elif (path / "zarr.json").is_file():
            pieces += _arrays(path)
        _note(swept, name, pieces, anonymous and name not in _NAMING)
    for what, text in printed.items():
        _note(swept, what, [text.encode()], anonymous)
    return swept


def _note(swept: Swept, where: str, pieces: list[bytes], files: bool) -> None:
    for pattern in (_HEADERS, _FILES) if files else (_HEADERS,):
        found = {match.group().decode() for piece in pieces for match in pattern.finditer(piece)}
        swept.hits += [f"{where}: {name}" for name in sorted(found)]


def unpacked(content: bytes) -> list[bytes]:
    """Bytes, what is packed in them, and both without the zeros of UTF-16."""
    found = [content, content.replace(b"\0", b"")]
    if content[:2] == b"\x1f\x8b":
        found += unpacked(gzip.decompress(content))
    elif content[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                found += [member.filename.encode(), *unpacked(archive.read(member))]
    elif content[:8] == b"\x89PNG\r\n\x1a\n":
        from PIL import Image

        with Image.open(io.BytesIO(content)) as image:
            image.load()
            found.append(json.dumps({**image.info, **image.text}, default=str).encode())
    return found


def _arrays(entry: Path) -> list[bytes]:
    """The decompressed values of a zarr array."""
    opened = zarr.open(entry, mode="r")
    if isinstance(opened, zarr.Array):
        return [np.asarray(opened[:]).tobytes()]
    return []
