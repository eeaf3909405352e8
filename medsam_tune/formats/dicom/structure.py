"""Lengths of the elements of a DICOM file, against that of the file itself."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Value representations with a length of 4 bytes, behind 2 that are not used."""

_BEFORE = {b"AE", b"OB", b"SH", b"UI", b"UL", b"UN", b"UR"}
"""Value representations of what stands before the data set; others make GDCM ask for gigabytes."""

_UNDEFINED = 0xFFFFFFFF
_SYNTAX, _ITEM, _PIXELS = (0x0002, 0x0010), (0xFFFE, 0xE000), (0x7FE0, 0x0010)
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = (
    f"1.2.840.10008.1.2{end}".encode() for end in ("", ".2", ".1.99")
)


def is_longer_than_its_file(path: Path) -> bool:
    """Whether an element of a DICOM file claims more bytes than are left, or half a word.

    The file is cut off then, or a length in it is damaged: decoders would fill up what lacks, or
    make room for up to 4 GB. Only lengths are read. A file without preamble, or a deflated one, is
    not looked at.
    """
    size = path.stat().st_size
    if size < 132:
        return True
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content[128:132] == b"DICM" and _overruns(content, size)


def _overruns(content: mmap.mmap, size: int) -> bool:
    at, order, explicit, syntax, in_pixels = 132, "<", True, b"", False
    meta = True
    while at + 8 <= size:
        if meta and content[at : at + 2] != b"\2\0":
            meta, order = False, ">" if syntax == _BIG_ENDIAN else "<"
            explicit = syntax != _IMPLICIT
            if syntax == _DEFLATED:
                return False
        tag = struct.unpack_from(f"{order}HH", content, at)
        kind = content[at + 4 : at + 6]
        if meta and kind not in _BEFORE:
            return True
        if explicit and tag == _PIXELS and kind not in {b"OB", b"OW", b"UN"}:
            return True
        if not explicit or tag[0] == _ITEM[0]:
            (length,) = struct.unpack_from(f"{order}I", content, at + 4)
            at += 8
        elif kind in _LONG:
            if at + 12 > size:
                return True
            (length,) = struct.unpack_from(f"{order}I", content, at + 8)
            at += 12
        else:
            (length,) = struct.unpack_from(f"{order}H", content, at + 6)
            at += 8
        if length == _UNDEFINED:
            if kind == b"UN" and explicit:
                return False  # may be in another syntax
            in_pixels = tag == _PIXELS
            continue  # the items follow
        if tag == _SYNTAX:
            syntax = content[at : at + length].rstrip(b"\0 ")
        if at + length > size or (kind == b"OW" and length % 2):
            return True
        if tag != _ITEM or in_pixels:
            at += length
    return False
