"""Masks of 2-D images: ids, 0 and 255, a palette, colours of classes, or numbers of objects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medsam_tune.cases.checks import check_pair, check_turned, label_values
from medsam_tune.cases.classes import FILE, PLAIN, Coding, shown_colour
from medsam_tune.cases.description import IGNORE
from medsam_tune.cases.labels.grid import of_image
from medsam_tune.errors import DataError, listed
from medsam_tune.formats.image import TURNED
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import is_coloured, is_flat, load_label, palette_of
from medsam_tune.formats.volume import Region

_Ids = NDArray[np.int64]
_FULL = (2**8 - 1, 2**16 - 1)  # white of 8 and 16 bits
_SHOWN = 6  # colours in a message
_OF_INDICES = " If the indices of palettes are the ids, leave colours out of it."
_GREY = 0x010101  # code of a colour whose red, green and blue are 1


@dataclass(frozen=True)
class Mask:
    """The mask of a 2-D image; see `LabelFile`.

    Values are, in this order: numbers of objects, where the coding says so; colours of the class
    map, of RGB and of a palette; ids; grey levels of the class map; 0 and 255 (or 65535) of a data
    set with one label.

    Attributes:
        path: the file, in a format that keeps values as they are.
        coding: how it says its labels.
        region: part of the image whose mask it is; None for all of it.
    """

    path: Path
    coding: Coding = PLAIN
    region: Region | None = None
    numbered: ClassVar[bool] = True
    folds_case: ClassVar[bool] = False
    names_are_present: ClassVar[bool] = True

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is named like an image."""
        return is_flat(path)

    def names(self, known: Mapping[int, str] | None = None) -> dict[int, str]:
        """Every id above 0, named "label 1", "label 2", ...

        Args:
            known: ids that are certain; others may come.

        Raises:
            DataError: colours that the class map lacks.
        """
        found = label_values(torch.from_numpy(self._ids(known)))
        return {value: f"label {value}" for value in found if value}

    def present(self, labels: Mapping[int, str]) -> set[int]:
        """Labels that have a pixel."""
        return set(label_values(torch.from_numpy(self._ids(labels)))) & set(labels)

    def onto(
        self, image: MetaTensor, image_path: Path, labels: Mapping[int, str], mending: Mending
    ) -> MetaTensor:
        """See `LabelFile.onto`; of numbers of objects, the result has two channels.

        Raises:
            DataError: another size than the image's, colours that the class map lacks, values
                that are no labels, or may be ids or colours; an image that EXIF turns.
        """
        mask = self._read()
        codes, coloured = self._codes(mask)
        size, expected = codes.shape[:2], tuple(map(int, image.meta["spatial_shape"][:2]))
        if size != expected:
            turned = TURNED in image.meta.get("notes", ())
            raise DataError(
                f"the mask has {size[0]} x {size[1]} pixels, the image {expected[0]} x "
                f"{expected[1]} ({self.path}, {image_path}); expected the same size."
                f"{' The image is turned, as its EXIF says.' if turned else ''} Export the mask at "
                "the size of the image."
            )
        check_turned(image, image_path, self.path, mask.meta.get("notes", ()))
        _check_place(self.path, mask, image_path, image)
        ids = [self._decoded(codes, coloured, labels)]
        ids += [codes] if self.coding.instances else []
        whole = of_image(np.stack(ids).astype(np.int32), self.path, image)
        check_pair(image, cast(MetaTensor, whole[:1]), labels, image_path, self.path)
        return whole

    def _ids(self, labels: Mapping[int, str] | None) -> _Ids:
        """(W, H, 1) label ids; see `_decoded`."""
        return self._decoded(*self._codes(self._read()), labels)

    def _read(self) -> MetaTensor:
        """(C, W, H, 1) as the file has it."""
        return load_label(self.path, region=self.region)

    def _codes(self, mask: MetaTensor) -> tuple[_Ids, bool]:
        """(W, H, 1) values, or red * 65536 + green * 256 + blue; and whether it is colours."""
        array = mask.as_tensor().numpy()
        if (array != array.round()).any() or array.min() < 0:
            raise DataError(
                f"the mask has values that are no ids, from {array.min():g} to {array.max():g} "
                f"({self.path}); expected whole numbers of 0 or more. Export it as PNG."
            )
        values = array.astype(np.int64)
        if len(values) == 1:
            return values[0], False
        if len(values) != 3:
            raise DataError(
                f"the mask has {len(values)} bands ({self.path}); expected one, or colours. Export "
                "the band with the labels alone."
            )
        if values.max() > 255:
            if (values % 257).any():  # what 8 bits are multiplied by, to fill 16
                raise DataError(
                    f"the mask has colours of 16 bits ({self.path}); expected those of 8 bits, as "
                    "classes have. Export it as PNG of 8 bits."
                )
            values //= 257
        return _code(*values), True

    def _decoded(self, codes: _Ids, coloured: bool, labels: Mapping[int, str] | None) -> _Ids:
        """Values as ids.

        Args:
            codes: (W, H, 1) from `_codes`.
            coloured: whether they are codes of colours.
            labels: id -> name of every value that may come besides 0; None if that is not known.
        """
        if self.coding.instances:
            return (codes > 0).astype(np.int64) * next(iter(labels or {1: ""}))
        found = label_values(torch.from_numpy(codes))
        palette = palette_of(self.path)
        colour = self._colours_of(found, coloured, palette)
        meant = {_code(*_rgb(text)): number for text, number in self.coding.colours.items()}
        meant.setdefault(0, 0)  # black is the background, unless a class has it
        unknown = [value for value in found if colour.get(value) not in meant]
        if coloured and unknown:
            raise self._unknown([colour[value] for value in unknown], codes)
        by_colour = bool(self.coding.colours) and not unknown
        known = labels
        if known is None and self.coding.colours:
            known = dict.fromkeys(self.coding.colours.values(), "")
        ids = known is None or {*found} <= {0, *known}
        if by_colour or coloured:
            said = {value: meant[colour[value]] for value in found}
            plain = said == {value: value for value in found}
            if coloured or palette is not None or not ids or plain or is_coloured(self.path):
                return _mapped(codes, said)
            raise self._ambiguous(said)
        greys = all(colour.get(value, 0) % _GREY == 0 for value in unknown)
        if palette is not None and self.coding.colours and not (ids and greys):
            raise self._unknown([colour[value] for value in unknown if value in colour], None)
        return _mapped(codes, _white(found, labels))

    @staticmethod
    def _colours_of(
        found: Iterable[int], coloured: bool, palette: Sequence[tuple[int, int, int]] | None
    ) -> dict[int, int]:
        """Value -> code of its colour, of those that have one."""
        if coloured:
            return {value: value for value in found}
        if palette is not None:
            return {value: _code(*palette[value]) for value in found if value < len(palette)}
        return {value: _code(value, value, value) for value in found if value < 256}

    def _unknown(self, unknown: Iterable[int], codes: _Ids | None) -> DataError:
        """Refusal of colours that no class has."""
        few = []
        for code in unknown:
            count = "" if codes is None else f" ({int((codes == code).sum())} pixels)"
            few.append(f"{shown_colour(code >> 16, code >> 8 & 255, code & 255)}{count}")
        known = listed(self.coding.colours, _SHOWN)
        expected = f"expected {known}" if known else "and nothing says what colours mean"
        return DataError(
            f"the mask has colours of no class: {listed(few, _SHOWN)} ({self.path}); {expected}. "
            f"Name each colour in {FILE} in the folder, or in a file: medsam-tune split --classes "
            f"FILE.{_OF_INDICES if codes is None else ''}"
        )

    def _ambiguous(self, said: Mapping[int, int]) -> DataError:
        """Refusal of greys that are colours of classes and ids of other classes."""
        value = next(value for value, number in said.items() if value != number)
        return DataError(
            f"the mask's value {value} may be the id {value}, or the colour of the class "
            f"{said[value]} ({self.path}); expected one of them. If values are ids, leave the "
            f"colours out of {FILE}; else give classes the ids of their greys."
        )


def refuse_other_palettes(paths: Iterable[Path]) -> None:
    """Refuse masks of a data set whose palettes give one index different colours.

    Programs that make a palette for each file number the colours anew in each. Only where nothing
    says what colours mean are indices taken as ids.

    Args:
        paths: files of masks; those without a palette pass.

    Raises:
        DataError: two masks differ in the colour of an index that both have.
    """
    seen: dict[int, tuple[tuple[int, int, int], Path]] = {}
    for path in paths:
        try:
            palette = palette_of(path) or []
            values = load_label(path).as_tensor().unique().int().tolist() if palette else []
        except DataError:  # reading the case says why, and refuses it alone
            continue
        for index in (value for value in values if value < len(palette)):
            colour, other = seen.setdefault(index, (palette[index], path))
            if colour != palette[index]:
                raise DataError(
                    f"index {index} is {shown_colour(*colour)} in the palette of {other}, and "
                    f"{shown_colour(*palette[index])} in that of {path}; expected one colour of "
                    f"each index, as nothing says what colours mean. Name them in {FILE} in the "
                    "folder, or in a file: medsam-tune split --classes FILE."
                )


def _check_place(path: Path, mask: MetaTensor, image_path: Path, image: MetaTensor) -> None:
    """Refuse a mask that lies elsewhere on the earth than its image."""
    own, other = (one.meta.get("georeference") for one in (mask, image))
    if own is None or other is None:
        return
    corners = [(0, 0), (mask.shape[1], 0), (0, mask.shape[2])]
    a, b, _, d, e, _ = other.transform
    near = min(np.hypot(a, d), np.hypot(b, e)) / 2
    shifts = [np.subtract(own.at(*one), other.at(*one)) for one in corners]
    largest = float(np.abs(shifts).max())
    if largest > near:
        raise DataError(
            f"the mask lies elsewhere than the image ({path}, {image_path}): its transform is "
            f"{own.transform}, the image's {other.transform}; expected the same within half a "
            "pixel. Warp the mask to the image's grid, e.g. by gdalwarp."
        )


def _white(found: Collection[int], labels: Mapping[int, str] | None) -> dict[int, int]:
    """Value -> id: ids themselves; of 0 and white alone, white is the only label."""
    known = {1: ""} if labels is None else labels
    only = [number for number, name in known.items() if name != IGNORE]
    white = [value for value in _FULL if value in found]
    if white and {*found} <= {0, white[0]} and len(only) == 1 and white[0] not in known:
        return {0: 0, white[0]: only[0]}
    return {value: value for value in found}


def _mapped(codes: _Ids, ids: Mapping[int, int]) -> _Ids:
    """Each value replaced by its id."""
    values = np.array(sorted(ids))
    targets = np.array([ids[int(value)] for value in values])
    return targets[np.searchsorted(values, codes)]


def _code(red: Any, green: Any, blue: Any) -> Any:
    """One number of a colour; of ints, or of arrays."""
    return red * 65536 + green * 256 + blue


def _rgb(text: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour such as "#6EC1E4"."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
