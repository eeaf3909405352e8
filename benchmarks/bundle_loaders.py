"""Exported bundles in MONAI Label and MONAI Deploy: their own classes, the masks of `predict`.

    python benchmarks/bundle_loaders.py WORK [--data ../shared/data]

WORK keeps what is made: an environment for each program, laid over this interpreter's packages
(they are installed without their pinned dependencies, plus what they import), a short training on
phantoms, and its export. Scans: a phantom and, where they are, a real CT as NIfTI and as DICOM
series (decoded, as MONAI Deploy has no JPEG 2000 without further packages). The table goes to
benchmarks/results/bundle_loaders.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medsam_tune.files import written_whole
from medsam_tune.formats.volume import same_affine

OUTPUT = Path(__file__).parent / "results" / "bundle_loaders.md"
REPOSITORY = Path(__file__).parents[1]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
# What the two programs import, beyond this package's own dependencies.
PACKAGES = {
    "label": """monailabel==0.8.5 cachetools dicomweb-client einops expiring_dict expiringdict
        fastapi girder-client httpx itk itk-core itk-filtering itk-io itk-numerics
        itk-registration itk-segmentation numpymaxflow passlib pydantic-settings pydicom-seg pyjwt
        pynetdicom pynrrd python-dotenv python-multipart requests-toolbelt schedule scikit-learn
        joblib threadpoolctl shapely starlette timeloop watchdog bcrypt google-auth scikit-image
        lazy-loader imageio tifffile openslide-python lmdb""",
    "deploy": """monai-deploy-app-sdk==4.0.0 holoscan-cu13==4.6.0 holoscan-cli wheel-axle-runtime
        cloudpickle cupy-cuda13x fastrlock typeguard colorama tritonclient geventhttpclient gevent
        greenlet zope.event zope.interface brotli python-rapidjson""",
}
CLASSES = {
    "label": "`BundleInferTask` of MONAI Label 0.8.5",
    "deploy": "an application with `MonaiBundleInferenceOperator` of MONAI Deploy App SDK 4.0.0",
    "monai": "`python -m monai.bundle run`, in the bundle's folder",
}


def label(bundle: Path, scans: list[Path], output: Path, maps: Path | None = None) -> None:
    """Masks by MONAI Label, which takes no label maps; runs in its environment."""
    from monailabel.tasks.infer.bundle import BundleInferTask

    task = BundleInferTask(str(bundle), {})
    for scan in scans:
        request = {"image": str(scan), "device": "cpu", "result_extension": ".nii.gz"}
        file, _ = task(request)
        shutil.move(file, output / f"{stem(scan)}.nii.gz")


def deploy(bundle: Path, scans: list[Path], output: Path, maps: Path | None = None) -> None:
    """Masks by MONAI Deploy; runs in its environment.

    DICOM goes through its own operators. It has none for NIfTI that keeps the place of a scan.
    """
    from monai.deploy.conditions import CountCondition
    from monai.deploy.core import AppContext, Application, Image, IOType, Operator
    from monai.deploy.operators import (
        DICOMDataLoaderOperator,
        DICOMSeriesSelectorOperator,
        DICOMSeriesToVolumeOperator,
        IOMapping,
        MonaiBundleInferenceOperator,
    )

    class Nifti(Operator):
        """A NIfTI scan as `Image`."""

        def __init__(self, *args: object, path: Path, **kwargs: object) -> None:
            self.path = path
            super().__init__(*args, **kwargs)

        def setup(self, spec):
            spec.output("volume")

        def compute(self, op_input, op_output, context):
            file = nib.load(self.path)
            place = {name: file.affine for name in ("affine", "original_affine")}
            spacing = np.linalg.norm(file.affine[:3, :3], axis=0)
            known = {"spacing": spacing, "space": "RAS", "original_channel_dim": "no_channel"}
            op_output.emit(Image(np.asarray(file.dataobj), place | known), "volume")

    class Write(Operator):
        """The mask as NIfTI, where Deploy says that it is."""

        def __init__(self, *args: object, path: Path, **kwargs: object) -> None:
            self.path = path
            super().__init__(*args, **kwargs)

        def setup(self, spec):
            spec.input("pred")

        def compute(self, op_input, op_output, context):
            mask = op_input.receive("pred")
            array = np.swapaxes(mask.asnumpy(), 0, 2)
            affine = np.asarray(mask.metadata()["original_affine"])
            nib.save(nib.Nifti1Image(array, affine), self.path)

    class App(Application):
        """Scan, bundle, mask."""

        def __init__(self, *args: object, scan: Path, **kwargs: object) -> None:
            self.scan = scan
            super().__init__(*args, **kwargs)

        def compose(self):
            names = ["image"] if maps is None else ["image", "prompts"]
            inputs = [IOMapping(name, Image, IOType.IN_MEMORY) for name in names]
            mask = [IOMapping("pred", Image, IOType.IN_MEMORY)]
            infer = MonaiBundleInferenceOperator(
                self,
                app_context=AppContext({}),
                input_mapping=inputs,
                output_mapping=mask,
                bundle_path=bundle,
                name="infer",
            )
            write = Write(self, path=output / f"{stem(self.scan)}.nii.gz", name="write")
            once = CountCondition(self, 1)
            if self.scan.is_dir():
                read = DICOMDataLoaderOperator(self, once, input_folder=self.scan, name="read")
                choose = DICOMSeriesSelectorOperator(self, name="choose")
                volume = DICOMSeriesToVolumeOperator(self, name="volume")
                lists = {("dicom_study_list", "dicom_study_list")}
                chosen = "study_selected_series_list"
                self.add_flow(read, choose, lists)
                self.add_flow(choose, volume, {(chosen, chosen)})
                self.add_flow(volume, infer, {("image", "image")})
            else:
                volume = Nifti(self, once, path=self.scan, name="volume")
                self.add_flow(volume, infer, {("volume", "image")})
            if maps is not None:
                boxes = Nifti(self, once, path=maps / self.scan.name, name="maps")
                self.add_flow(boxes, infer, {("volume", "prompts")})
            self.add_flow(infer, write, {("pred", "pred")})

    for scan in scans:
        with suppress(Exception):  # a mask less; it is printed
            App([sys.argv[0]], scan=scan).run()


def stem(scan: Path) -> str:
    """Name of a scan without endings."""
    return scan.name.partition(".")[0]


def environment(name: str, work: Path) -> Path:
    """The interpreter of a program's environment, made if absent."""
    folder = work / "environments" / name
    python = folder / "bin" / "python"
    if (folder / "made").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    own = Path(sysconfig.get_path("purelib"))
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "zz_base.pth").write_text(f"{own}\n")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES[name].split()]
    subprocess.run(install, check=True)
    if name == "deploy":  # it is a part of the package monai, which therefore lies beside it
        shutil.copytree(own / "monai", packages / "monai", dirs_exist_ok=True)
    (folder / "made").touch()
    return python


def tune(*words: object) -> None:
    """Run `medsam-tune`."""
    start = "from medsam_tune.cli import main; main()"
    subprocess.run([sys.executable, "-c", start, *map(str, words)], check=True, env=alone())


def alone() -> dict[str, str]:
    """This process's environment, without a GPU: bfloat16 would differ from one to the next."""
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}


def trained(work: Path, prompted: bool) -> Path:
    """A run on phantoms, made if absent: by the labels alone, or by prompts alone."""
    from medsam_tune.demo import SUBJECTS, prepare_demo

    run = work / ("prompted_run" if prompted else "run")
    if not (run / "tuned.safetensors").exists():
        given = [
            "--datalist",
            prepare_demo(work, SUBJECTS["volume"]),
            "--output",
            run,
            "--image-size",
            128,
        ]
        chosen = {**SUBJECTS["volume"].settings, **({"epochs": 1} if prompted else {})}
        words = [word for one in chosen.items() for word in ("--set", f"{one[0]}={one[1]}")]
        tune("train", "full", *given, *words, *["--class-agnostic"] * prompted)
    return run


def decoded(series: Path, folder: Path) -> None:
    """A series without compression, for programs without a decoder, and with plain UIDs."""
    folder.mkdir()
    study, own, frame = (generate_uid() for _ in range(3))
    for file in sorted(series.iterdir()):
        image = dcmread(file)
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[0].astype(np.int16)
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.PixelData = voxels.tobytes()
        image["PixelData"].VR = "OW"
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.PixelRepresentation, image.RescaleSlope, image.RescaleIntercept = 1, 1, 0
        image.StudyInstanceUID, image.SeriesInstanceUID = study, own
        image.FrameOfReferenceUID, image.SOPInstanceUID = frame, generate_uid()
        image.SeriesNumber = image.AcquisitionNumber = 1  # empty in the original
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(folder / f"{file.name}.dcm")


def compared(mask: Path, ours: Path) -> str:
    """Whether two masks are equal, whatever the order of their axes, as a cell of the table."""
    if not mask.exists():
        return "no mask"
    one, two = (nib.as_closest_canonical(nib.load(path)) for path in (mask, ours))
    if one.shape != two.shape or not same_affine(one.affine, two.affine):
        return f"another grid: {one.shape}, {np.round(one.affine, 3).tolist()}"
    other = int((np.asarray(one.dataobj) != np.asarray(two.dataobj)).sum())
    return "equal" if other == 0 else f"{other} voxels differ"


def segmented(work: Path, run: Path, scans: list[Path], maps: Path | None = None) -> None:
    """Masks of a run by `predict`, and of its bundle by each program, in folders of their names."""
    for name in ("bundle", "ours", *CLASSES):
        shutil.rmtree(work / name, ignore_errors=True)
    for name in ("ours", *CLASSES):
        (work / name).mkdir(parents=True)
    tune("export", "--format", "bundle", "--run", run, "--output", work / "bundle")
    for scan in scans:
        prompts = [] if maps is None else ["--prompts", maps / scan.name]
        mask = work / "ours" / f"{stem(scan)}.nii.gz"
        tune("predict", scan, "--run", run, "--output", mask, *prompts)
    for program in PACKAGES:
        words = [environment(program, work.parent), __file__, work, "--inside", program]
        words += [*scans] if maps is None else [*scans, "--maps", maps]
        subprocess.run([*map(str, words)], check=False, env=alone())
    shutil.copytree(work / "bundle", work / "moved")
    words = ["--dataset_dir", scans[0].parent, "--output_dir", work / "monai"]
    words += [] if maps is None else ["--prompts_dir", maps]
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", "configs/inference.yaml", *map(str, words)]
    subprocess.run(command, check=False, env=alone(), cwd=work / "moved")
    shutil.rmtree(work / "moved")
    for mask in (work / "monai").iterdir():
        mask.rename(mask.with_name(mask.name.replace("_mask", "")))


def table(work: Path, scans: list[Path]) -> list[str]:
    """Lines of a table: what `predict` marks, and whether others mark the same."""
    names = [f"{stem(scan)}.nii.gz" for scan in scans]
    marked = [np.asarray(nib.load(work / "ours" / name).dataobj) for name in names]
    counts = [f"{np.count_nonzero(one):,} of {one.size:,}" for one in marked]
    labels = [", ".join(map(str, np.unique(one[one > 0]))) for one in marked]
    lines = [
        "| | " + " | ".join(stem(scan) for scan in scans) + " |",
        "|---" * (1 + len(scans)) + "|",
        f"| voxels in the mask of `predict` | {' | '.join(counts)} |",
        f"| their labels | {' | '.join(labels)} |",
    ]
    for program, words in CLASSES.items():
        found = [compared(work / program / name, work / "ours" / name) for name in names]
        lines.append(f"| {words} | {' | '.join(found)} |")
        print(lines[-1], file=sys.stderr)
    return [*lines, ""]


def main() -> None:
    """Make what is missing, segment, compare, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--maps", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = given.work.resolve()
    if given.inside:
        program, *scans = given.inside
        inside = {"label": label, "deploy": deploy}[program]
        inside(work / "bundle", [Path(scan) for scan in scans], work / program, given.maps)
        return
    for name in ("scans", "phantom", "maps"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir(parents=True)
    runs = [trained(work, prompted) for prompted in (False, True)]
    phantom = sorted((work / "phantoms" / "imagesTr").iterdir())[-1]
    shutil.copy(phantom, work / "scans")
    shutil.copy(phantom, work / "phantom")
    shutil.copy(work / "phantoms" / "labelsTr" / phantom.name, work / "maps")
    real = given.data / "totalseg"
    if real.is_dir():
        shutil.copy(real / "example_ct_sm.nii.gz", work / "scans")
        decoded(real / "example_ct_dicom", work / "scans" / "example_ct_dicom")
    scans = sorted((work / "scans").iterdir())
    segmented(work / "all", runs[0], scans)
    segmented(work / "asked", runs[1], [work / "phantom" / phantom.name], work / "maps")
    lines = [
        "# Exported bundles in other programs\n",
        "`python benchmarks/bundle_loaders.py WORK`: bundles by `medsam-tune export --format "
        "bundle`, and the masks of `medsam-tune predict` beside those of others. nano, 128 pixels, "
        f"tuned on phantoms; CPU, monai {version('monai')}, torch {version('torch')}.\n",
        "A model that finds its labels without prompts:\n",
        *table(work / "all", scans),
        "A model that segments what is prompted (`--class-agnostic`), by a label map as second "
        "input. MONAI Label hands none to a bundle, so no mask is expected there:\n",
        *table(work / "asked", [work / "phantom" / phantom.name]),
    ]
    with written_whole(OUTPUT) as beside:
        beside.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
