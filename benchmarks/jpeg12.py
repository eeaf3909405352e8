"""A plain decoder of grey sequential JPEG with 8 or 12 bits, to check other decoders by.

References:
    ITU-T T.81 (1992), "Digital compression and coding of continuous-tone still images".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.fft import idctn

# Annex A.3.6: place of the k-th coefficient, along diagonals of alternating direction.
_ZIGZAG = sorted(
    ((i, j) for i in range(8) for j in range(8)),
    key=lambda ij: (sum(ij), ij[0] if sum(ij) % 2 else ij[1]),
)
_Codes = dict[tuple[int, int], int]  # (length, code) -> value


def decode(data: bytes) -> NDArray[np.int32]:
    """(rows, columns) of a picture with one component, Huffman-coded, without restarts."""
    quantisers: dict[int, list[int]] = {}
    codes: dict[tuple[int, int], _Codes] = {}
    place = 2
    while True:
        marker = data[place + 1]
        length = int.from_bytes(data[place + 2 : place + 4])
        part = data[place + 4 : place + 2 + length]
        place += 2 + length
        if marker == 0xDB:
            while part:
                wide, number = part[0] >> 4, part[0] & 15
                size = 64 * (wide + 1)
                quantisers[number] = np.frombuffer(part[1 : 1 + size], f">u{wide + 1}").tolist()
                part = part[1 + size :]
        elif marker == 0xC4:
            while part:
                counts = part[1:17]
                codes[part[0] >> 4, part[0] & 15] = _codes(counts, part[17:])
                part = part[17 + sum(counts) :]
        elif marker in (0xC0, 0xC1):
            bits, components = part[0], part[5]
            rows, columns = int.from_bytes(part[1:3]), int.from_bytes(part[3:5])
            quantiser = quantisers.get(part[8]), part[8]
            assert components == 1
        elif marker == 0xDA:
            tables = part[2]
            break
    table = np.array(quantiser[0] or quantisers[quantiser[1]])
    stream = _bits(data[place:])
    dc, ac = codes[0, tables >> 4], codes[1, tables & 15]
    image = np.empty((-(-rows // 8) * 8, -(-columns // 8) * 8))
    last = 0
    for top in range(0, rows, 8):
        for left in range(0, columns, 8):
            last, block = _block(stream, dc, ac, last)
            square = np.zeros((8, 8))
            for k, value in block.items():
                square[_ZIGZAG[k]] = value * table[k]
            image[top : top + 8, left : left + 8] = idctn(square, norm="ortho")
    values = np.round(image[:rows, :columns] + (1 << (bits - 1)))
    return np.clip(values, 0, (1 << bits) - 1).astype(np.int32)


def _codes(counts: bytes, values: bytes) -> _Codes:
    """Annex C."""
    found, code, place = {}, 0, 0
    for length, count in enumerate(counts, start=1):
        for _ in range(count):
            found[length, code] = values[place]
            code, place = code + 1, place + 1
        code <<= 1
    return found


def _bits(data: bytes) -> Iterator[int]:
    place = 0
    while True:
        byte = data[place]
        if byte == 0xFF:
            if data[place + 1] != 0:  # a marker ends it; what is missing is 1s
                yield from iter(lambda: 1, 0)
            place += 1
        place += 1
        yield from ((byte >> shift) & 1 for shift in range(7, -1, -1))


def _symbol(stream: Iterator[int], codes: _Codes) -> int:
    length = code = 0
    while True:
        length, code = length + 1, code << 1 | next(stream)
        if (length, code) in codes:
            return codes[length, code]
        assert length < 16


def _number(stream: Iterator[int], size: int) -> int:
    """Annex F.2.2.1: a number of `size` bits; those that begin with 0 are negative."""
    value = 0
    for _ in range(size):
        value = value << 1 | next(stream)
    return value if size == 0 or value >> (size - 1) else value - (1 << size) + 1


def _block(stream: Iterator[int], dc: _Codes, ac: _Codes, last: int) -> tuple[int, dict[int, int]]:
    """The block's DC value, for the next one, and its coefficients in zigzag order."""
    last += _number(stream, _symbol(stream, dc))
    found, k = {0: last}, 1
    while k < 64:
        run, size = divmod(_symbol(stream, ac), 16)
        if size == 0 and run < 15:
            break
        k += run
        if size:
            found[k] = _number(stream, size)
        k += 1
    return last, found
