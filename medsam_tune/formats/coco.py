"""COCO's JSON of annotated images: read and checked, masks of its objects, and written."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from reprlib import repr as shown
from threading import Lock
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray

from medsam_tune.errors import DataError, listed
from medsam_tune.files import read_json, write_json

ENDING = ".json"
LIMIT = 2**30
"""Bytes of the largest file that is read; COCO's own training set has 470 million."""

KEYS = ("images", "annotations", "categories")
"""Keys that tell COCO's JSON from other JSON."""

OUTSIDE_TOLERANCE = 2.0
"""Pixels that a polygon or a box may reach out of the image, at most; what is outside is cut."""


@dataclass(frozen=True)
class Annotation:
    """One object of an image, as the file says it.

    Attributes:
        id: its own id.
        category: id of its category.
        crowd: True if it is a region of objects that nobody told apart.
        segmentation: polygons, RLE, or nothing.
        box: `bbox`: left, top, width, height in pixels; None if it is not there.
    """

    id: int
    category: int
    crowd: bool
    segmentation: Any
    box: Any


@dataclass(frozen=True)
class Picture:
    """One image that the file speaks of.

    Attributes:
        file_name: path of the image, as the file says it.
        width: pixels.
        height: pixels.
        objects: its annotations, in the file's order.
    """

    file_name: str
    width: int
    height: int
    objects: tuple[Annotation, ...]


@dataclass(frozen=True)
class Coco:
    """The content of a file.

    Attributes:
        path: the file.
        categories: id -> name of all categories.
        pictures: the images, in the file's order.
    """

    path: Path
    categories: Mapping[int, str]
    pictures: tuple[Picture, ...]

    @property
    def used(self) -> dict[int, str]:
        """Id -> name of the categories that have an object, by ascending id."""
        present = {one.category for picture in self.pictures for one in picture.objects}
        return {k: name for k, name in sorted(self.categories.items()) if k in present}

    @property
    def has_crowds(self) -> bool:
        """Whether there are regions of objects that nobody told apart."""
        return any(one.crowd for picture in self.pictures for one in picture.objects)

    def picture_of(self, image: Path) -> Picture:
        """The picture of an image: by as much of its path as the file says, else by its name.

        Raises:
            DataError: there is none, or there are several.
        """
        same = [one for one in self.pictures if PurePosixPath(one.file_name).name == image.name]
        ends = [one for one in same if _ends_with(image, one.file_name)]
        best = max((len(PurePosixPath(one.file_name).parts) for one in ends), default=0)
        found = [one for one in ends if len(PurePosixPath(one.file_name).parts) == best] or same
        if len(found) != 1:
            names = listed(one.file_name for one in found)
            raise DataError(
                f"{self.path}: {f'several images may be {image}: {names}' if found else ''}"
                f"{'' if found else f'no image has the file_name {image.name}'}; expected one. "
                "Correct its images."
            )
        return found[0]


def is_coco(path: Path) -> bool:
    """Whether a file looks like COCO's JSON, by its keys."""
    if path.suffix.lower() != ENDING or not path.is_file() or path.stat().st_size > LIMIT:
        return False
    text = path.read_bytes()
    return all(f'"{key}"'.encode() in text for key in KEYS)


def read(path: Path) -> Coco:
    """Read and check a file; a file that did not change is read once.

    Objects are checked one by one in `mask_of`, so that a bad one refuses its own image only.

    Raises:
        DataError: the file cannot be read; images, annotations or categories are no lists; ids that
            are none, are there twice, or are missing; an image without a name or a size.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Correct the path.") from error
    with _READING:
        return _read(path, status.st_mtime_ns, status.st_size)


_READING = Lock()


@lru_cache(maxsize=4)
def _read(path: Path, _time: int, _size: int) -> Coco:
    content = read_json(path, LIMIT)
    lists = {key: _objects(content.get(key), key, path) for key in KEYS}
    categories = {_id(one, "id", "categories", path): one for one in lists["categories"]}
    images = {_id(one, "id", "images", path): one for one in lists["images"]}
    for key in KEYS:
        _refuse_twice([one.get("id") for one in lists[key]], f"{key} have the ids", path)
    names = {number: one.get("name") for number, one in categories.items()}
    _refuse_twice([*names.values()], "categories are named", path)
    for number, name in names.items():
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{path}: category {number}: name is {shown(name)}; expected text.")
    _refuse_twice([one.get("file_name") for one in images.values()], "images are named", path)
    objects: dict[int, list[Annotation]] = defaultdict(list)
    missing: Counter[str] = Counter()
    for one in lists["annotations"]:
        image, category = (
            _id(one, key, "annotations", path) for key in ("image_id", "category_id")
        )
        if image not in images:
            missing[f"image {image}"] += 1
        if category not in categories:
            missing[f"category {category}"] += 1
        objects[image].append(_annotation(one, category, path))
    if missing:
        counted = listed(f"{name} ({count} annotations)" for name, count in missing.items())
        raise DataError(
            f"{path}: annotations are of what the file does not list: {counted}; expected each in "
            "images and categories. Add them, or take the annotations out."
        )
    pictures = [_picture(one, tuple(objects[k]), path) for k, one in images.items()]
    return Coco(path, {k: str(name).strip() for k, name in names.items()}, tuple(pictures))


def mask_of(one: Annotation, picture: Picture) -> NDArray[np.bool_]:
    """The pixels of an object; without a segmentation, those whose centre is in its box.

    Args:
        one: the object.
        picture: the image that it is of.

    Returns:
        (H, W) bool.

    Raises:
        DataError: the polygons, the RLE or the box are none, or do not lie in the image.
    """
    size = picture.height, picture.width
    if isinstance(one.segmentation, Mapping):
        return _of_rle(one, size)
    if one.segmentation:
        return _of_polygons(one, size)
    return _of_box(one, size)


def write_results(
    path: Path,
    file_name: str,
    numbers: NDArray[np.int32],
    categories: Mapping[int, int],
    names: Mapping[int, str],
    scores: Mapping[int, float] | None = None,
) -> None:
    """Write the objects of one image, whole or not at all.

    Args:
        path: .json file.
        file_name: name of the image.
        numbers: (H, W) number of the object of each pixel, 0 for none.
        categories: number -> id of its category, of the objects to write.
        names: id of a category -> name.
        scores: number -> score of the object, 0..1, if there are scores.
    """
    height, width = numbers.shape
    rows = []
    for number, category in categories.items():
        rle = coco_mask.encode(np.asfortranarray(numbers == number, dtype=np.uint8))
        area = int(coco_mask.area(rle))
        if not area:
            continue
        rows.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": category,
                "iscrowd": 0,
                "area": area,
                "bbox": [float(side) for side in coco_mask.toBbox(rle)],
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                **({} if scores is None else {"score": scores[number]}),
            }
        )
    content = {
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "annotations": rows,
        "categories": [{"id": k, "name": name} for k, name in sorted(names.items())],
    }
    write_json(path, content)


def _ends_with(image: Path, file_name: str) -> bool:
    parts = PurePosixPath(file_name).parts
    return image.parts[-len(parts) :] == parts


def _objects(said: Any, key: str, path: Path) -> Sequence[Mapping[str, Any]]:
    if not isinstance(said, list) or not all(isinstance(one, Mapping) for one in said):
        raise DataError(
            f"{path}: {key} is {shown(said)}; expected a list of objects, as in COCO's files."
        )
    return said


def _id(one: Mapping[str, Any], key: str, where: str, path: Path) -> int:
    number = one.get(key)
    if type(number) is not int or number < 0:
        raise DataError(
            f"{path}: {where}: {key} is {shown(number)}; expected a whole number of 0 or more."
        )
    return number


def _refuse_twice(values: Iterable[Any], what: str, path: Path) -> None:
    counts = Counter(value for value in values if isinstance(value, (int, str)))
    twice = [str(value) for value, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: several {what} {listed(twice)}; expected each once. Where files were put "
            "together, number them anew."
        )


def _annotation(one: Mapping[str, Any], category: int, path: Path) -> Annotation:
    number, crowd = _id(one, "id", "annotations", path), one.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{path}: annotation {number}: iscrowd is {shown(crowd)}; expected 0 or 1.")
    return Annotation(number, category, bool(crowd), one.get("segmentation"), one.get("bbox"))


def _picture(one: Mapping[str, Any], objects: tuple[Annotation, ...], path: Path) -> Picture:
    name, sides = one.get("file_name"), (one.get("width"), one.get("height"))
    if not isinstance(name, str) or not PurePosixPath(name).name:
        raise DataError(f"{path}: image {one['id']}: file_name is {shown(name)}; expected text.")
    if not all(type(side) is int and side > 0 for side in sides):
        raise DataError(
            f"{path}: image {name}: width and height are {shown(sides)}; expected whole numbers "
            "of 1 or more."
        )
    return Picture(name, int(sides[0] or 0), int(sides[1] or 0), objects)


def _refused(one: Annotation, found: str, expected: str) -> DataError:
    return DataError(f"annotation {one.id}: {found}; expected {expected}. Correct or remove it.")


def _of_polygons(one: Annotation, size: tuple[int, int]) -> NDArray[np.bool_]:
    expected = "polygons [x0, y0, x1, y1, x2, y2, ...] of three points or more"
    rings = one.segmentation
    if not isinstance(rings, list) or not all(_are_numbers(ring) for ring in rings):
        raise _refused(one, f"segmentation is {shown(rings)}", expected)
    if any(len(ring) < 6 or len(ring) % 2 for ring in rings):
        counts = listed(str(len(ring)) for ring in rings)
        raise _refused(one, f"polygons of {counts} numbers", expected)
    every = np.concatenate([np.reshape(ring, (-1, 2)) for ring in rings])
    _refuse_outside(one, every.min(0), every.max(0), size)
    return _decoded(coco_mask.frPyObjects(rings, *size))


def _of_rle(one: Annotation, size: tuple[int, int]) -> NDArray[np.bool_]:
    said, counts = one.segmentation.get("size"), one.segmentation.get("counts")
    if said != [*size]:
        raise _refused(one, f"RLE of height and width {shown(said)}", f"the image's, {[*size]}")
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    # pycocotools fills what the counts leave out with whatever is in memory.
    whole = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not whole or sum(counts) != size[0] * size[1]:
        raise _refused(
            one,
            f"RLE whose counts are {shown(one.segmentation.get('counts'))}",
            f"whole numbers whose sum is {size[0] * size[1]}, the image's pixels",
        )
    return _decoded([coco_mask.frPyObjects({"size": [*size], "counts": counts}, *size)])


def _uncompressed(text: str) -> list[int]:
    """Counts of a compressed RLE, without what the text breaks off in.

    A letter has 5 bits, the lowest first; a count is the difference to the one before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (bits & 16) << (shift - 4)  # the sign
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def _of_box(one: Annotation, size: tuple[int, int]) -> NDArray[np.bool_]:
    if not _are_numbers(one.box) or len(one.box) != 4 or min(one.box[2:]) <= 0:
        raise _refused(
            one,
            f"no segmentation, and bbox is {shown(one.box)}",
            "[left, top, width, height] in pixels",
        )
    low = np.array(one.box[:2], np.float64)
    high = low + one.box[2:]
    _refuse_outside(one, low, high, size)
    x0, y0 = np.ceil(np.maximum(low, 0) - 0.5).astype(int)
    x1, y1 = np.ceil(high - 0.5).astype(int)
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def _refuse_outside(
    one: Annotation,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    size: tuple[int, int],
) -> None:
    width, height = size[1], size[0]
    if low.min() >= -OUTSIDE_TOLERANCE and (
        high[0] <= width + OUTSIDE_TOLERANCE and high[1] <= height + OUTSIDE_TOLERANCE
    ):
        return
    raise _refused(
        one,
        f"reaches from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g})",
        f"it within the image of {width} x {height} pixels",
    )


def _decoded(rles: Any) -> NDArray[np.bool_]:
    """(H, W) of the union of run lengths."""
    return np.asarray(coco_mask.decode(coco_mask.merge(rles)), dtype=bool)
