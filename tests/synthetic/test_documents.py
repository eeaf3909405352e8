"""Made-up pages: blocks in their boxes, and COCO's JSON of them."""

from __future__ import annotations

import numpy as np

from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.synthetic.documents import CATEGORIES, make_page, write_documents


def test_ink_is_in_the_boxes_and_boxes_are_apart():
    seen = set()
    for seed in range(12):
        page, blocks = make_page(np.random.default_rng(seed))
        ink = np.asarray(page).min(-1) < 230
        covered = np.zeros(ink.shape, int)
        for kind, (x0, y0, x1, y1) in blocks:
            covered[y0:y1, x0:x1] += 1
            own = ink[y0:y1, x0:x1]
            assert own.any(1).mean() > 0.5, (seed, kind)
            seen.add(kind)
        assert covered.max() == 1
        assert not (ink & (covered == 0)).any(), seed
    assert seen == CATEGORIES.keys()


def test_files_are_a_data_set(tmp_path):
    folder = write_documents(tmp_path, count=3)
    found = find_cases(folder)
    assert set(found.labels.items()) <= set(CATEGORIES.items())
    assert [case.image.name for case in found.training] == [f"page00{n}.png" for n in (1, 2, 3)]
    image, label = load_case(found.training[0], found.labels)
    _, blocks = make_page(np.random.default_rng([0, 1]))
    assert image.shape == (1, 306, 396, 1) or image.shape == (3, 306, 396, 1)
    assert label[1].max() == len(blocks)
    kind, (x0, y0, x1, y1) = blocks[0]
    assert (label[0, x0:x1, y0:y1] == kind).all()
