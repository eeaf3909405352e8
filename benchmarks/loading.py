"""Loading a DICOM series: our SimpleITKReader beside MONAI's ITKReader and PydicomReader.

    python benchmarks/loading.py [--slices 200]

The series is a CT of 512 x 512 that the script writes, plain and as JPEG-LS, with a header as long
as a scanner's. Each reader has a process of its own; their turns alternate, from warm files.
MONAI's ITKReader needs `pip install itk`. The table goes to benchmarks/results/loading.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from monai.data import ITKReader, PydicomReader
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, generate_uid
from training_step import Memory, machine

from medsam_tune.files import written_whole
from medsam_tune.formats.reader import SimpleITKReader

OUTPUT = Path(__file__).parent / "results" / "loading.md"
REPEATS = 5
ITK = importlib.util.find_spec("itk") is not None
READERS = {
    "SimpleITKReader (ours)": SimpleITKReader,
    "ITKReader (MONAI)": ITKReader,
    "PydicomReader (MONAI)": PydicomReader,
}
SYNTAXES = {"uncompressed": ExplicitVRLittleEndian, "JPEG-LS lossless": JPEGLSLossless}


def write_series(folder: Path, count: int, syntax: str) -> np.ndarray:
    """A body in air with noise, written as CT; returns (X, Y, Z) HU."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 1064, 100)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    planes = []
    for k in range(count):
        stored = (body + rng.normal(0, 12, body.shape)).astype(np.int16)
        planes.append(stored.T - np.float32(1024))
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{k:04d}.dcm"
        image = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        image.SeriesInstanceUID, image.StudyInstanceUID = series, study
        image.FrameOfReferenceUID, image.Modality, image.PatientID = frame, "CT", "1"
        image.SeriesNumber, image.InstanceNumber = 1, k + 1
        image.Rows, image.Columns = body.shape
        image.PixelSpacing, image.SliceThickness = [0.8, 0.8], 2
        image.ImagePositionPatient = [-200, -200, 2 * k]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.PixelRepresentation, image.RescaleSlope, image.RescaleIntercept = 1, 1, -1024
        block = image.private_block(0x0029, "SCANNER", create=True)
        for element in range(120):
            block.add_new(element, "LO", f"setting {element}")
        image.PixelData = stored.tobytes()
        if syntax != ExplicitVRLittleEndian:
            image.compress(syntax)
        image.save_as(path, enforce_file_format=True)
    return np.stack(planes, axis=-1)


@dataclass
class Taken:
    """By one load; the memory only if it was watched, which costs a little time."""

    seconds: float
    processor: float
    mebibytes: float
    total: float


def load(reader: str, folder: Path, watch: bool) -> Taken:
    """Load the series once."""
    memory = Memory("cpu")
    start, busy = time.perf_counter(), time.process_time()
    if watch:
        with memory.watch():
            array = _load(reader, folder)
    else:
        array = _load(reader, folder)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return Taken(seconds, busy, memory.peak, float(array.sum(dtype=np.float64)))


def _load(reader: str, folder: Path) -> np.ndarray:
    loader = READERS[reader]()
    return loader.get_data(loader.read(folder))[0]


def compared(folder: Path, total: float) -> dict[str, list[Taken]]:
    """The first load of each reader and the repeats, by turns; none of what is not installed."""
    there = [name for name, reader in READERS.items() if reader is not ITKReader or ITK]
    context = get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, mp_context=context) for name in there}
    taken: dict[str, list[Taken]] = {name: [] for name in READERS}
    for turn in range(1 + REPEATS):
        for name, pool in pools.items():
            one = pool.submit(load, name, folder, turn == 0).result()
            assert abs(one.total - total) < 1e-6 * abs(total), f"{name} reads other values"
            taken[name].append(one)
    for pool in pools.values():
        pool.shutdown()
    return taken


def main() -> None:
    """Write the series, measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=200)
    count = parser.parse_args().slices
    packages = ["monai", "SimpleITK", "pydicom", "pyjpegls", *(["itk"] if ITK else [])]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    lines = [
        "# Loading a DICOM series\n",
        f"`python benchmarks/loading.py` on {machine('cpu')}, {versions}.\n",
        f"CT, {count} files of 512 x 512, from warm files to a float array and its affine. Seconds "
        f"are the median of {REPEATS} with their range, by turns; processor seconds "
        "(medians, too) leave out what other programs took; memory is the peak of the first "
        f"load beyond the libraries (the array itself: {count} MiB as float32).\n",
        "| | | seconds | processor seconds | of ours | MiB |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for kind, syntax in SYNTAXES.items():
            folder = Path(scratch) / kind
            total = float(write_series(folder, count, syntax).sum(dtype=np.float64))
            results = compared(folder, total)
            ours = _processor(next(iter(results.values())))
            for name, taken in results.items():
                if not taken:
                    lines.append(f"| {kind} | {name} | not installed | | | |")
                    continue
                seconds = [one.seconds for one in taken[1:]]
                lines.append(
                    f"| {kind} | {name} | {statistics.median(seconds):.3g} ({min(seconds):.3g} to "
                    f"{max(seconds):.3g}) | {_processor(taken):.3g} | "
                    f"{_processor(taken) / ours:.2f} x | {taken[0].mebibytes:,.0f} |"
                )
                print(lines[-1], file=sys.stderr)
    with written_whole(OUTPUT) as beside:
        beside.write_text("\n".join([*lines, ""]))


def _processor(taken: list[Taken]) -> float:
    return statistics.median(one.processor for one in taken[1:])


if __name__ == "__main__":
    main()
