"""Shared by all tests: a tiny SAM, a small case, and where the real scans are."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from medsam_tune import cli
from medsam_tune.cases.datalist import Case
from medsam_tune.sam.build import ARCHITECTURES, Architecture, build_sam
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import PreparedCase, SliceStore
from tests.network import cut
from tests.scans import LABELS, small_scan, write_nifti
from tests.server import Server

# Windowed and global blocks, 2 x 2 windows with padding at 80 pixels, in well under a second.
TINY = Architecture(
    "tiny", 24, 3, 2, (1,), window=4, image_size=96, decoder_width=16, decoder_mlp=32
)
cut()
REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def tiny_sam(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PromptableSam]:
    """Builds tiny SAMs, registered as "tiny" so that tuned files find their base."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)

    def build(**options: object) -> PromptableSam:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its weights are random
            sam = build_sam("tiny", **options)  # type: ignore[arg-type]
        sam.random_weights = False  # stands for a trained one
        generator = torch.Generator().manual_seed(1)
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name:  # zero at the start: without values they would not be tested
                parameter.data.normal_(std=0.5, generator=generator)
        return sam

    return build


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs commands in processes of their own, without the seconds that imports take."""
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.close()


@pytest.fixture
def tune(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `medsam-tune` in this process: exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medsam-tune", *map(str, words)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def hippocampus() -> Path:
    """Folder of the real MR cases."""
    folder = REAL_DATA / "hippocampus"
    if not folder.is_dir():
        pytest.skip(f"real scans are not here: {folder.name} beside the repository")
    return folder


@pytest.fixture
def make_case(tmp_path: Path) -> Callable[..., Case]:
    """Writes one case; `image` and `label` replace the small scan's arrays."""

    def make(
        name: str = "case_017",
        image: np.ndarray | None = None,
        label: np.ndarray | None = None,
        affine: np.ndarray | None = None,
        label_affine: np.ndarray | None = None,
    ) -> Case:
        usual_image, usual_label = small_scan()
        image = usual_image if image is None else image
        label = usual_label if label is None else label
        label_affine = affine if label_affine is None else label_affine
        return Case(
            write_nifti(tmp_path / "imagesTr" / f"{name}.nii.gz", image, affine),
            write_nifti(tmp_path / "labelsTr" / f"{name}.nii.gz", label, label_affine),
            "patient_a",
        )

    return make


@pytest.fixture
def store(tmp_path: Path) -> SliceStore:
    """An empty slice store."""
    return SliceStore(tmp_path / "store", ScanRules(Window(100, 200)), LABELS)


@pytest.fixture
def prepared(store: SliceStore, make_case: Callable[..., Case]) -> list[PreparedCase]:
    """Two small cases in the store."""
    return store.prepare([make_case("a"), make_case("b")], progress=False)


def image_and_boxes(size: int = 96, images: int = 2, prompts: int = 3) -> tuple[torch.Tensor, ...]:
    """A batch of images in [0, 1] and boxes (B, P, 4) in their frame."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(images, 3, size, size, generator=generator)
    lower = torch.rand(images, prompts, 2, generator=generator) * size / 2
    upper = lower + 8 + torch.rand(images, prompts, 2, generator=generator) * (size / 2 - 8)
    return image, torch.cat([lower, upper], dim=-1)
