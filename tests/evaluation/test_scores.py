"""Scores of several ranks."""

from __future__ import annotations

from medsam_tune.evaluation.metrics import Score
from medsam_tune.evaluation.scores import together


def test_scores_of_several_ranks_are_those_of_one() -> None:
    scores = [
        Score(str(case), "slices", label, "", None, None, 0, 0, None)
        for case in range(5)
        for label in (1, 2)
    ]
    by_case = {case: [s for s in scores if s.case == str(case)] for case in range(5)}
    parts = [
        {"slices": [s for case in share for s in by_case[case]]}
        for share in ((0, 2, 4), (1, 3, 0))  # the last of the second is one more time the first
    ]
    assert together(parts) == {"slices": scores}
