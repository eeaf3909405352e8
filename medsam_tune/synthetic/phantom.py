"""Synthetic abdominal CT for the demo and the tests: real geometry and units, no patient.

Organs are smooth implicit shapes in millimetres, warped differently in each patient. So their
outlines in a slice differ from the ellipses of the box-only baseline.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]

# Each kidney is its own object: one box around both would hold the spine.
LABELS = {1: "liver", 2: "spleen", 3: "right kidney", 4: "left kidney", 5: "liver lesion"}

# Portal venous phase, Hounsfield units: usual textbook means.
_AIR, _FAT, _MUSCLE, _BOWEL = -1000.0, -100.0, 55.0, 35.0
_LIVER, _SPLEEN, _CORTEX, _MEDULLA, _BLOOD = 108.0, 122.0, 175.0, 130.0, 150.0
_CORTICAL_BONE, _MARROW = 520.0, 190.0
_FREE = 100.0  # brighter voxels belong to an organ or a vessel already


def write_phantoms(
    folder: Path,
    count: int = 12,
    seed: int = 0,
    shape: tuple[int, int, int] = (96, 80, 24),
    spacing: tuple[float, float, float] = (3.6, 3.2, 5.0),
    noise: float = 12.0,
) -> Path:
    """Write phantoms as a Medical Segmentation Decathlon folder.

    Args:
        folder: folder for `dataset.json`, `imagesTr/` and `labelsTr/`, made if absent.
        count: number of patients, one scan each.
        seed: seed; it fixes the files, byte by byte.
        shape: (X, Y, Z) voxels: right-left, anterior-posterior, feet-head.
        spacing: (x, y, z) millimetres; shape times spacing is about 340 x 250 x 120 mm for a body.
        noise: standard deviation of the noise, Hounsfield units.

    Returns:
        the folder.
    """
    folder = Path(folder)
    entries = []
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        image, label = make_phantom(rng, shape, spacing, noise)
        name = f"phantom_{number:03d}.nii.gz"
        # Both storage orders occur in practice: DICOM's (LPS) and nibabel's (RAS).
        affine, flips = _storage(shape, spacing, rng, lps=number % 2 == 0)
        for sub, array in (("imagesTr", image), ("labelsTr", label)):
            stored = np.ascontiguousarray(np.flip(array, flips))
            nifti = nib.Nifti1Image(stored, affine)
            nifti.header.set_xyzt_units("mm")
            nifti.set_qform(affine, code=1)
            nifti.set_sform(affine, code=1)
            nib.loadsave.save(nifti, folder / sub / name)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    description = {
        "name": "phantoms",
        "description": "synthetic abdominal CT",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(key): name for key, name in LABELS.items()}},
        "numTraining": count,
        "numTest": 0,
        "training": entries,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1))
    return folder


def make_phantom(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    noise: float,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Scan of one patient.

    Args:
        rng: source of randomness.
        shape: (X, Y, Z) voxels.
        spacing: (x, y, z) millimetres.
        noise: standard deviation of the noise, Hounsfield units.

    Returns:
        image int16 HU and label uint8, both (X, Y, Z) with x to the left, y to posterior, z to
        superior (LPS).
    """
    space = _Space.make(rng, shape, spacing)
    image = np.full(shape, _AIR, dtype=np.float32)
    label = np.zeros(shape, dtype=np.uint8)
    body = _paint_body(space, image)
    _paint_bowel(space, image, body)
    _paint_spine(space, image)
    _paint_vessels(space, image)
    label[_paint_kidney(space, image, body, side=-1)] = 3
    label[_paint_kidney(space, image, body, side=1)] = 4
    label[_paint_spleen(space, image, body)] = 2
    liver = _paint_liver(space, image, body)
    label[liver] = 1
    label[_paint_lesion(space, image, liver)] = 5
    # Partial volume: a scanner's slices are thick and its pixels have an area.
    image = ndimage.gaussian_filter(image, (0.45, 0.45, 0.35))
    grain = ndimage.gaussian_filter(space.normal(), (0.6, 0.6, 0.0))
    image += noise * grain / grain.std()
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16), label


@dataclass
class _Space:
    """Warped millimetres (x, y, z), each (X, Y, Z), origin at the body's centre."""

    rng: np.random.Generator
    x: Array
    y: Array
    z: Array
    spacing: tuple[float, float, float]

    @classmethod
    def make(
        cls,
        rng: np.random.Generator,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
    ) -> _Space:
        axes = [
            (np.arange(n, dtype=np.float32) - (n - 1) / 2) * step
            for n, step in zip(shape, spacing, strict=True)
        ]
        grids = np.meshgrid(*axes, indexing="ij")
        # The anatomy is drawn for 340 x 250 x 120 mm and stretched to the field of view.
        extent = [n * step for n, step in zip(shape, spacing, strict=True)]
        size = rng.uniform(0.93, 1.03)
        x, y, z = (
            grid * (whole / fov) / size
            for grid, whole, fov in zip(grids, (346.0, 256.0, 120.0), extent, strict=True)
        )
        space = cls(rng, x, y, z, spacing)
        for name in ("x", "y", "z"):
            setattr(space, name, getattr(space, name) + space.smooth(40.0, 5.0))
        return space

    def normal(self) -> Array:
        return self.rng.standard_normal(self.x.shape, dtype=np.float32)

    def smooth(self, scale: float, amplitude: float) -> Array:
        """A random field of the given correlation length (mm) and standard deviation."""
        sigma = [scale / step / 2 for step in self.spacing]
        coarse = [max(1, int(s)) for s in sigma]
        small = [-(-n // c) + 4 for n, c in zip(self.x.shape, coarse, strict=True)]
        field = self.rng.standard_normal(small)
        field = ndimage.gaussian_filter(field, [s / c for s, c in zip(sigma, coarse, strict=True)])
        field = ndimage.zoom(field, coarse, order=1)[tuple(slice(0, n) for n in self.x.shape)]
        return np.asarray(amplitude * field / (field.std() + 1e-6), dtype=np.float32)

    def jitter(self, *values: float, by: float = 4.0) -> list[float]:
        """Positions or radii moved by a few millimetres."""
        return [value + float(self.rng.normal(0, by / 2)) for value in values]


def _rotate(u: Array, v: Array, degrees: float) -> tuple[Array, Array]:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return cos * u + sin * v, cos * v - sin * u


def _superellipsoid(u: Array, v: Array, w: Array, radii: list[float], power: float) -> Array:
    """Implicit function, below 1 inside."""
    a, b, c = radii
    sums = np.abs(u / a) ** power + np.abs(v / b) ** power + np.abs(w / c) ** power
    return np.asarray(sums, dtype=np.float32)


def _paint_body(space: _Space, image: Array) -> NDArray[np.bool_]:
    """Skin, fat, muscle wall and the fat inside; returns where organs may lie."""
    x, y = space.x, space.y + 0.0012 * space.x**2  # flat back, round belly
    y = np.where(space.y > 0, space.y * 1.06, y - 4)
    rim = float(space.rng.uniform(10, 22))
    depth = _superellipsoid(x, y, 0 * x, [158, 112, 1], 2.3) ** 0.5
    wall = _superellipsoid(x, y, 0 * x, [158 - rim, 112 - rim, 1], 2.3) ** 0.5
    cavity = _superellipsoid(x, y, 0 * x, [158 - rim - 13, 112 - rim - 12, 1], 2.3) ** 0.5
    image[depth < 1] = 20.0
    image[depth < 0.975] = _FAT
    image[wall < 1] = _MUSCLE
    # Ribs: short bright arcs in the wall that move along it from slice to slice.
    angle = np.arctan2(y, x)
    ribs = np.cos(9 * angle + space.z / 11) > 0.62
    image[(np.abs(wall - 0.945) < 0.028) & ribs & (y > -60)] = 330
    inside = cavity < 1
    image[inside] = _FAT
    return np.asarray(inside)


def _paint_bowel(space: _Space, image: Array, body: NDArray[np.bool_]) -> None:
    """Loops of bowel and stomach in front: soft tissue, some with gas."""
    region = body & (space.y < 10 + space.smooth(30, 10)) & (space.x > -60)
    loops = space.smooth(16, 1)
    image[region & (loops > -0.5)] = _BOWEL
    image[region & (np.abs(loops + 0.4) < 0.15)] = 70
    gas = region & (loops > 1.25) & (space.y < -20)
    image[gas] = -850
    psoas = _superellipsoid(np.abs(space.x) - 40, space.y - 42, space.z, [19, 22, 400], 2.2) < 1
    image[psoas & body] = _MUSCLE
    back = _superellipsoid(np.abs(space.x) - 36, space.y - 84, space.z, [36, 21, 400], 2.8) < 1
    image[back & (image > -500)] = _MUSCLE


def _paint_spine(space: _Space, image: Array) -> None:
    x, y = space.x, space.y - 56
    phase = np.mod(space.z + 60, 36) / 36
    waist = 1 - 0.12 * np.cos(2 * np.pi * phase)
    body = _superellipsoid(x, y + 0.006 * x**2, 0 * x, [22, 16, 1], 2.4) ** 0.5 * waist
    disc = phase > 0.8
    image[body < 1] = np.where(disc, 85, _CORTICAL_BONE)[body < 1]
    image[(body < 0.84) & ~disc] = _MARROW
    canal = _superellipsoid(x, y - 24, 0 * x, [9, 7.5, 1], 2) ** 0.5
    image[(canal < 1.75) & (y > 8)] = _CORTICAL_BONE
    image[canal < 1] = 25
    process = (np.abs(x) < 3.5) & (y > 32) & (y < 54) & ~disc
    transverse = (np.abs(y - 20 - 0.1 * np.abs(x)) < 4) & (np.abs(x) < 40) & (phase < 0.5)
    image[process | (transverse & (canal > 1))] = 380


def _paint_vessels(space: _Space, image: Array) -> None:
    cx, cy, dx, dy = space.jitter(9, 26, -18, 24)
    sway = 5 * np.sin(space.z / 35)
    aorta = np.hypot(space.x - cx - sway, space.y - cy)
    cava = np.hypot((space.x - dx - sway) / 1.25, space.y - dy)
    image[aorta < 11.5] = 60
    image[aorta < 10] = _BLOOD + 15
    image[cava < 10] = _BLOOD - 10


def _paint_kidney(
    space: _Space, image: Array, body: NDArray[np.bool_], side: int
) -> NDArray[np.bool_]:
    """A bean, right (-1) or left (1): an ellipsoid without the sinus at its medial side."""
    cx, cy, cz = space.jitter(70, 42, -14 + 10 * side, by=6)
    tilt = -28 + float(space.rng.normal(0, 8))
    u, v = _rotate(side * space.x - cx, space.y - cy, tilt)
    w = space.z - cz
    u = u + 0.125 * w  # the upper pole leans to the spine
    radii = space.jitter(25, 30, 52, by=3)
    r = _superellipsoid(u + 0.012 * v**2, v, w, radii, 2.2) ** 0.5 + space.smooth(18, 0.07)
    reach = 30 * np.clip(1 - (w / 38) ** 2, 0, None)
    hilum = np.hypot((u + 25) / 1.35, v / 0.62) < 0.62 * reach
    kidney = (r < 1) & ~hilum & body
    image[(r < 1.25) & body & ~kidney & (image < _FREE)] = _FAT
    image[kidney] = _CORTEX
    image[kidney & (r < 0.68 + 0.06 * np.cos(7 * np.arctan2(v, u)))] = _MEDULLA
    image[hilum & (r < 0.62)] = 20  # renal pelvis
    return np.asarray(kidney)


def _paint_spleen(space: _Space, image: Array, body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A crescent along the left wall: an ellipsoid without the stomach's impression."""
    cx, cy, cz = space.jitter(98, 22, 26, by=6)
    u, v = _rotate(space.x - cx, space.y - cy, 18 + float(space.rng.normal(0, 6)))
    w = space.z - cz
    outer = _superellipsoid(u, v, w, space.jitter(31, 50, 48, by=4), 2.3) + space.smooth(25, 0.08)
    shift = float(space.rng.uniform(19, 25))
    dent = _superellipsoid(u + shift, v + 4, w, [27, 40, 70], 2.0) + space.smooth(20, 0.1)
    spleen = (outer < 1) & (dent > 1) & body & (image < _FREE)
    image[spleen] = _SPLEEN + space.smooth(9, 5)[spleen]
    return np.asarray(spleen)


def _paint_liver(space: _Space, image: Array, body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A wedge: thick at the right wall, thin over the midline, cut by fossa and fissure."""
    cx, cy, cz = space.jitter(-62, -12, 18, by=6)
    u, v, w = space.x - cx, space.y - cy, space.z - cz
    outer = _superellipsoid(u, v, w, space.jitter(92, 84, 72, by=5), 2.6) + space.smooth(30, 0.09)
    slope = float(space.rng.uniform(0.5, 0.75))
    # The visceral surface runs from the right kidney up to the tip of the left lobe.
    under = v + slope * (u - 22) - 0.0025 * (u - 22) ** 2 + 0.35 * -w + space.smooth(26, 7) < 26
    gall = np.hypot((u - 34) / 0.8, v + 22 + 0.3 * u) < 12 + 0.12 * -w
    fissure = (np.abs(u - 52 - 0.15 * v + space.smooth(20, 3)) < 2.6) & (v < -26)
    hollow = _superellipsoid(u + 2, v - 62, w + 30, [36, 34, 40], 2) > 1
    liver = (outer < 1) & under & ~gall & ~fissure & hollow & body
    liver &= image < _FREE
    largest, count = ndimage.label(liver)
    if count > 1:
        liver = largest == 1 + int(np.argmax(np.bincount(largest.ravel())[1:]))
    image[(outer < 1) & gall & body] = 8
    image[liver] = _LIVER + space.smooth(9, 4)[liver]
    branches = np.abs(space.smooth(30, 1)) + np.abs(space.smooth(30, 1))
    image[liver & (branches < 0.17)] = _BLOOD
    return np.asarray(liver)


def _paint_lesion(space: _Space, image: Array, liver: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """None or one lesion, a little darker than the liver, with a lobed outline."""
    places = np.argwhere(ndimage.distance_transform_edt(liver, sampling=space.spacing) > 9)
    if len(places) == 0 or space.rng.random() < 0.25:
        return np.zeros(image.shape, dtype=bool)
    i, j, k = places[space.rng.integers(len(places))]
    u, v, w = (grid - grid[i, j, k] for grid in (space.x, space.y, space.z))
    radii = space.rng.uniform((9, 9, 12), (22, 22, 22)).tolist()
    lesion = (_superellipsoid(u, v, w, radii, 2) + space.smooth(14, 0.4) < 1) & liver
    pieces, _count = ndimage.label(lesion)
    lesion = (pieces > 0) & (pieces == pieces[i, j, k])
    image[lesion] -= float(space.rng.uniform(35, 60))
    return np.asarray(lesion)


def _storage(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    lps: bool,
) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """The affine (RAS+ mm) of a stored array, and the axes to flip of the LPS array."""
    signs = np.array([-1.0, -1.0, 1.0]) if lps else np.ones(3)
    affine = np.diag([*(signs * spacing), 1.0])
    middle = (np.array(shape) - 1) / 2
    centre = np.round(rng.uniform((-30, -30, 870), (30, 30, 930)), 1)
    affine[:3, 3] = centre - affine[:3, :3] @ middle
    return affine, () if lps else (0, 1)
