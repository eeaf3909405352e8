"""Several networks answer with the mean of their logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medsam_tune.inference.embedded import plane_for
from medsam_tune.inference.ensembles import Ensemble, EnsemblePlane, differences
from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.planes import Asked
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.methods import apply_method
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.inference.made import LABELS, RAS, Build, objects, scan, volume, write_run

RULES = ScanRules(Window(100, 200))


def networks(tiny_sam: Build, classes: int = 2) -> list[PromptableSam]:
    """Two of different inputs and weights."""
    found = []
    for seed, size in ((0, 96), (1, 80)):
        torch.manual_seed(seed)
        sam = apply_method(tiny_sam(image_size=size), "decoder", num_classes=classes or None)
        if sam.learned is not None:
            sam.learned.present.data[:, -1] = 1.0 - 3 * seed
        found.append(sam.eval())
    return found


@pytest.mark.parametrize("window", [None, 32])
@torch.inference_mode()
def test_answers_are_the_mean_of_the_networks_own(tiny_sam: Build, window: int | None) -> None:
    members = networks(tiny_sam)
    rules = [RULES, ScanRules(Window(100, 200), squash=True, window=window)]
    slices = torch.randint(0, 255, (2, 1, 40, 48), dtype=torch.uint8)
    asked = Asked(
        torch.tensor([[[3.0, 4], [30, 30]], [[0, 0], [47, 39]], [[0, 0], [0, 0]]]),
        torch.tensor([[2, 3], [2, 3], [-1, -1]]),
        torch.tensor([0, 1, 1]),
        torch.randn(3, 40, 48),
    )
    where = torch.tensor([0, 1, 1])
    ensemble = plane_for(Ensemble(members, rules), (40, 48))
    assert isinstance(ensemble, EnsemblePlane)
    found = ensemble.decode(ensemble.encode(slices), where, asked)
    own = []
    for network, each in zip(members, rules, strict=True):
        plane = plane_for(network, (40, 48), each)
        own.append(plane.decode(plane.encode(slices), where, asked))
    assert not torch.allclose(own[0].logits, own[1].logits, atol=0.1)
    for name in ("logits", "quality", "presence"):
        mean = (getattr(own[0], name) + getattr(own[1], name)) / 2
        torch.testing.assert_close(getattr(found, name), mean)


def test_an_ensemble_of_runs_is_the_mean_of_their_logits(tmp_path: Path) -> None:
    """Through files: runs, a scan, and the probabilities in its grid."""
    runs = [tmp_path / name for name in ("a", "b")]
    for seed, folder in enumerate(runs):
        write_run(folder, RULES, classes=2, seed=seed)
    path = scan(tmp_path, RAS, (10, 12, 6))
    content = objects(*({"label": k, "box3d": [1, 2, 1, 8, 9, 5]} for k in (1, 2)))
    own = [Segmenter.from_run(run, device="cpu").probabilities(path, content) for run in runs]
    both = Segmenter.from_run(runs, device="cpu")
    found = both.probabilities(path, content)
    assert found.keys() == own[0].keys() == {1, 2}
    asked = found[1] > 1e-6
    assert set(asked.nonzero()[:, 3].tolist()) == {1, 2, 3, 4}
    assert not torch.allclose(own[0][1], own[1][1], atol=0.01)
    for label, probability in found.items():
        mean = (own[0][label].logit() + own[1][label].logit()) / 2
        torch.testing.assert_close(probability[asked].logit(), mean[asked], atol=0.02, rtol=0.002)
    labels = both.segment(path, content)
    highest = torch.maximum(found[1], found[2])
    np.testing.assert_array_equal(labels > 0, highest > 0.5)
    assert (labels > 0).any()


def test_a_followed_object_has_one_way(tiny_sam: Build) -> None:
    """Each next box is around the mean's mask; two of the same network go its way."""
    sam = networks(tiny_sam, classes=0)[0]
    slices = volume()
    slices[:, :, 5:15, 8:20] += 60
    segmenter = Segmenter(sam, RULES, LABELS, "cpu")
    twice = Segmenter(Ensemble([sam, sam], [RULES, RULES]), RULES, LABELS, "cpu")
    values = slices[:, 0].permute(2, 1, 0).float()
    box = {"slices": {"2": {"box": [8, 5, 20, 15]}}, "propagate": True, "range": [0, 6]}
    asked = objects({"label": 1, **box})
    one, other = (each.segment(values, asked, RAS) for each in (segmenter, twice))
    assert len(set(one.nonzero()[:, 3].tolist())) > 1
    assert torch.equal(one, other)


def test_embeddings_of_an_ensemble_go_through_a_file(tiny_sam: Build) -> None:
    ensemble, slices = Ensemble(networks(tiny_sam), [RULES, RULES]), volume()
    found: list[Any] = []
    for budget in (2**30, 0):
        inferer = VolumeInferer(LABELS, RULES, embedding_budget=budget, detailed=True)
        inferer.probabilities = True
        with torch.inference_mode():
            found.append(inferer(slices, ensemble))
    assert torch.equal(found[0].labels, found[1].labels)
    assert torch.equal(found[0].logits.probabilities(1), found[1].logits.probabilities(1))


def test_networks_that_do_not_fit_together(tiny_sam: Build) -> None:
    members = [networks(tiny_sam, classes)[0] for classes in (1, 2)]
    with pytest.raises(ValueError, match=r"2 networks of \[1, 2\] classes and 2 rules; expected"):
        Ensemble(members, [RULES, RULES])
    with pytest.raises(ValueError, match=r"2 networks of \[2\] classes and 1 rules"):
        Ensemble([members[1], members[1]], [RULES])


def test_rules_that_cut_other_slices() -> None:
    assert not differences(RULES, ScanRules(Window(100, 200), squash=True, window=64))
    other = ScanRules(Window(100, 300), plane="coronal", spacing=(1, 1, 0), neighbours=True)
    assert [text.split(" ")[0] for text in differences(RULES, other)] == [
        "intensity::width",
        "neighbours",
        "plane",
        "spacing::0",
        "spacing::1",
        "spacing::2",
    ]
