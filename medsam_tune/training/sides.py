"""Left and right in the names of labels: what a mirrored slice would get wrong."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

_WORDS = {
    "left": "right",
    "links": "rechts",
    "linke": "rechte",
    "linker": "rechter",
    "gauche": "droite",
    "izquierda": "derecha",
    "izquierdo": "derecho",
    "sinistra": "destra",
    "sinistro": "destro",
    "sinister": "dexter",
}
# They mean a side only where the other one is a label as well: "L" alone may be a vertebra.
_LETTERS = {"l": "r", "lt": "rt", "lh": "rh", "sin": "dex", "sx": "dx", "~left": "~right"}
_WORD = {**_WORDS, **{right: left for left, right in _WORDS.items()}, "droit": "gauche"}
_OTHER = {**_WORD, **_LETTERS, **{right: left for left, right in _LETTERS.items()}}
_PARTS = re.compile(r"[^\W\d_]+|\d+")
_HUMPS = re.compile(r"(?<=[a-z])(?=[A-Z])")  # LeftKidney, kidneyL
# leftkidney, which becomes ~left kidney
_GLUED = re.compile(r"\b(left|right)(?=\w{3})|(?<=\w{3})(left|right)\b")


def mirror_pairs(labels: Mapping[int, str]) -> dict[int, int]:
    """Labels whose names differ in left and right alone.

    Args:
        labels: label id -> name, such as "left kidney", "kidney_right", "L lung" or "femur_l".

    Returns:
        id -> id of the other side, in both directions; empty without such a pair.
    """
    by_words = {_words(name): label for label, name in labels.items()}
    pairs: dict[int, int] = {}
    for label, name in labels.items():
        words = _words(name)
        for place, word in enumerate(words):
            other = _OTHER.get(word)
            swapped = tuple(sorted([*words[:place], *words[place + 1 :], other or word]))
            if other is not None and swapped in by_words:
                pairs |= {label: by_words[swapped], by_words[swapped]: label}
    return pairs


def labels_of_a_side(labels: Mapping[int, str]) -> list[int]:
    """Ids of `mirror_pairs`, and of names with a word such as "left" whose other side is no label.

    Args:
        labels: label id -> name.
    """
    pairs = mirror_pairs(labels)
    return [k for k, name in labels.items() if k in pairs or any(w in _WORD for w in _words(name))]


def mirror_probability(labels: Mapping[int, str], usual: float = 0.5) -> float:
    """Probability of mirroring a training slice: 0 where names of labels say a side.

    A mirrored left kidney looks like a right one and would still be called left. Ids are not
    swapped instead: the mirror also moves what has a side without a name, such as the heart.

    Args:
        labels: label id -> name.
        usual: probability for labels without a side.
    """
    sided = labels_of_a_side(labels)
    if not sided:
        return usual
    logging.getLogger(__name__).info(
        f"slices are not mirrored in training, as labels have sides: {labels[sided[0]]!r} and "
        f"{len(sided) - 1} more; flip_prob={usual} mirrors them nevertheless."
    )
    return 0.0


def _words(name: str) -> tuple[str, ...]:
    """The words of a name, in lower case and in alphabetical order."""
    spaced = " ".join(_HUMPS.sub(" ", part) for part in _PARTS.findall(name)).lower()
    return tuple(sorted(_GLUED.sub(lambda side: f" ~{side[0]} ", spaced).split()))
