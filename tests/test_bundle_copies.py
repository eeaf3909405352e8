"""What two bundles share is the same in both."""

from __future__ import annotations

import pytest

from tests.bundle_copies import CHANGED, COPY, SHARED, SOURCE, copied


@pytest.mark.parametrize("name", SHARED)
def test_the_copies_are_current(name):
    assert (COPY / name).read_text(encoding="utf-8") == copied(name), "run `make bundles`"


def test_no_other_file_has_a_name_of_the_source():
    """Whoever adds a config to both bundles adds it to `SHARED`."""
    files = {p.relative_to(COPY).as_posix() for p in COPY.rglob("*") if p.is_file()}
    both = {name for name in files if (SOURCE / name).is_file()}
    assert both == {*SHARED, "configs/metadata.json", "docs/README.md"}
    assert set(CHANGED) <= {*SHARED}
