"""What the names of markups mean: labels, and points outside of an object."""

from __future__ import annotations

import re
from collections.abc import Mapping

from medsam_tune.errors import DataError
from medsam_tune.inference.prompt_files.values import known_labels, shown

OUTSIDE = ("negative", "neg", "outside", "background", "bg", "exclude", "excluded")
"""Words in a point's label or description, or in its list's name, that put it outside of the
object. A list that is named "N" is outside too."""

INSIDE = ("positive", "pos", "inside", "foreground", "fg", "include", "included")
"""Words that name no label."""


def words_of(text: str) -> tuple[str, ...]:
    """Words and numbers of a name, in lower case."""
    return tuple(re.findall(r"[^\W_]+", text.casefold()))


class Names:
    """What names in a file mean.

    Args:
        labels: label id -> name.
    """

    def __init__(self, labels: Mapping[int, str]) -> None:
        self.labels = labels
        self._exact = {name.strip().casefold(): label for label, name in labels.items()}
        self._words = {words_of(name): label for label, name in labels.items()}
        self._words |= {(str(label),): label for label in labels}
        self._words.pop((), None)

    def meaning(self, text: str) -> tuple[int | None, bool]:
        """The label that a text names, or None; and whether the text says outside.

        A number at the end, which Slicer adds, is left out if there is no such name with it.
        """
        words = words_of(text)
        label = self._exact.get(text.strip().casefold(), self._words.get(words))
        if label is not None:
            return label, False
        words = words[:-1] if words[-1:] and words[-1].isdigit() else words
        if words in self._words:
            return self._words[words], False
        rest = tuple(word for word in words if word not in (*OUTSIDE, *INSIDE))
        return self._words.get(rest), words == ("n",) or any(word in OUTSIDE for word in words)

    def one(self, said: int | None, text: str, where: str) -> int:
        """The label that is said, or the only one there is.

        Raises:
            DataError: none is said, and there are several.
        """
        if said is None and len(self.labels) == 1:
            return next(iter(self.labels))
        if said is None:
            raise DataError(
                f"{where}: its name {shown(text)} is of no label; known: "
                f"{known_labels(self.labels)}. Give the markup, or its point, the name or the "
                "number of a label."
            )
        return said
