"""Pictures show what they say: contours, boxes and the slices where something is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from medsam_tune.evaluation.overlays import Overlays, chosen
from medsam_tune.evaluation.pictures import COLOURS, Place, draw, draw_overlays, panel_of
from medsam_tune.evaluation.results import INDEX
from medsam_tune.inference.simulated import simulated_prompts
from medsam_tune.prompts import SlicePrompts

LABELS = {1: "liver", 2: "spleen", 7: "kidney"}


def truth() -> torch.Tensor:
    labels = torch.zeros(9, 40, 50, dtype=torch.long)
    labels[2:7, 8:30, 5:25] = 1
    labels[4, 10:35, 30:48] = 2
    return labels


def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(60, 200, (9, 1, 40, 50), dtype=torch.uint8, generator=generator)


def pixels(path: Path, colour: int) -> int:
    """How many pixels of a PNG are of one of `COLOURS`."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = np.round(np.array(COLOURS[colour]) * 255)
    return int((np.abs(picture - wanted).max(-1) <= 3).sum())


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Each figure that is saved."""
    seen: list[Figure] = []
    save = Figure.savefig

    def spy(figure: Figure, path: Path) -> None:
        seen.append(figure)
        save(figure, path)

    monkeypatch.setattr(Figure, "savefig", spy)
    return seen


def texts(figures: list[Figure]) -> list[str]:
    """Titles and axis labels, row by row."""
    found = [text for a in figures[0].axes for text in (a.get_title(), a.get_ylabel())]
    return [text for text in found if text]


def test_picture_has_the_contours_of_the_labels_that_are_there(tmp_path: Path) -> None:
    path = draw_overlays(tmp_path / "new" / "a.png", image(), {"truth": truth()}, LABELS)
    assert path == tmp_path / "new" / "a.png"
    assert np.asarray(Image.open(path).convert("L")).std() > 10
    liver, spleen, kidney = (pixels(path, n) for n in range(3))
    assert min(liver, spleen) > 100
    assert kidney == 0  # nor is it in the legend


def test_legend_of_many_labels_covers_no_picture(tmp_path: Path, figures: list[Figure]) -> None:
    many = torch.arange(40 * 50).reshape(1, 40, 50) // 45
    labels = {k: f"organ {k}" for k in range(1, 45)}
    draw_overlays(tmp_path / "a.png", image()[:1], {"truth": many, "model": many}, labels)
    (legend,) = figures[0].legends
    assert len(legend.get_texts()) == 44
    top = legend.get_window_extent().y1
    assert all(axis.get_window_extent().y0 > top for axis in figures[0].axes)


def given(kind: str, labels: Iterable[int] = LABELS) -> SlicePrompts:
    prompts = simulated_prompts(truth(), labels, kind)
    assert prompts is not None
    return prompts


def test_prompts_are_drawn_in_their_column_only(tmp_path: Path) -> None:
    columns = {"truth": truth() * 0, "model": truth() * 0, "other": truth() * 0}
    prompts = {"model": given("slices"), "other": None}
    bare = draw_overlays(tmp_path / "bare.png", image(), columns, LABELS)
    boxed = draw_overlays(tmp_path / "boxed.png", image(), columns, LABELS, prompts)
    assert pixels(boxed, 0) > pixels(bare, 0) + 100
    there = (np.asarray(Image.open(bare)) != np.asarray(Image.open(boxed))).any(-1).nonzero()[1]
    width = Image.open(bare).width
    assert width / 3 < there.min()
    assert there.max() < width * 2 / 3


def test_contours_and_tight_boxes_lie_on_each_other(tmp_path: Path, figures: list[Figure]) -> None:
    labels, prompts = {2: "spleen"}, {"truth": given("slices", [2])}
    draw_overlays(tmp_path / "a.png", image(), {"truth": truth()}, labels, prompts, rows=1)
    axis = figures[0].axes[0]
    edges = [[29.5, 9.5], [47.5, 34.5]]  # of the pixels 30..47 and 10..34
    (line,), (contour,) = axis.lines, axis.collections
    assert [line.get_xydata().min(0).tolist(), line.get_xydata().max(0).tolist()] == edges
    assert contour.get_paths()[0].get_extents().get_points().tolist() == edges


def test_boxes_that_nobody_drew_on_the_slice_are_dotted(
    tmp_path: Path, figures: list[Figure]
) -> None:
    prompts = {"truth": given("interpolated:2", [1])}
    draw_overlays(tmp_path / "a.png", image(), {"truth": truth()}, LABELS, prompts, rows=5)
    assert [axis.lines[0].get_linestyle() for axis in figures[0].axes] == ["--", *":::", "--"]


def test_points_are_drawn_on_their_pixel(tmp_path: Path, figures: list[Figure]) -> None:
    points = given("points", [2])
    several = torch.cat([points.points, torch.full((1, 2, 2), 3.5)], 1)
    kinds = torch.tensor([[1, 0, -1]])
    prompts = {"truth": replace(points, points=several, point_labels=kinds)}
    draw_overlays(tmp_path / "a.png", image(), {"truth": truth()}, LABELS, prompts, rows=1)
    inside, outside = figures[0].axes[0].lines  # padding is not drawn
    ((x, y),) = inside.get_xydata().astype(int)
    assert truth()[4, y, x] == 2
    assert outside.get_xydata().tolist() == [[3, 3]]
    assert inside.get_marker() != outside.get_marker()


def test_slices_with_labels_are_shown_with_their_dice(
    tmp_path: Path, figures: list[Figure]
) -> None:
    half = truth()
    half[half == 2] = 0
    draw_overlays(tmp_path / "a.png", image(), {"truth": truth(), "model": half}, LABELS)
    # liver 1, spleen 0; the kidney is nowhere and does not count
    assert texts(figures) == ["truth", "slice 2", "model\nDice 0.50", "slice 4", "slice 6"]


def test_fewer_slices_with_labels_than_rows(tmp_path: Path, figures: list[Figure]) -> None:
    one = torch.where(torch.arange(9).view(-1, 1, 1) == 5, truth(), 0)
    draw_overlays(tmp_path / "a.png", image(), {"truth": one}, LABELS)
    assert texts(figures) == ["truth", "slice 5"]


def test_empty_truth_shows_the_middle(tmp_path: Path, figures: list[Figure]) -> None:
    empty = truth() * 0
    path = draw_overlays(tmp_path / "a.png", image(), {"truth": empty, "model": empty + 0}, LABELS)
    assert texts(figures) == ["truth", "slice 4", "model"]  # nothing and nothing have no Dice
    assert np.asarray(Image.open(path).convert("L")).std() > 10


def test_label_that_fills_the_slice_has_an_outline(tmp_path: Path) -> None:
    none = draw_overlays(tmp_path / "none.png", image(), {"truth": truth() * 0}, LABELS, rows=1)
    full = draw_overlays(tmp_path / "full.png", image(), {"truth": truth() * 0 + 1}, LABELS, rows=1)
    assert pixels(full, 0) > pixels(none, 0) + 200


def run(handler: Overlays, batches: list[dict[str, object]]) -> None:
    """What an evaluator does, with the truth as its prediction."""
    engine = Engine(lambda _, batch: {"pred": dict.fromkeys(batch["prompts"], batch["label"])})
    handler.attach(engine)
    engine.run(batches)


def batch(case: str, label: torch.Tensor | None = None, *kinds: str) -> dict[str, object]:
    label = truth() if label is None else label
    prompts = {kind: simulated_prompts(label, LABELS, kind) for kind in kinds or ("slices",)}
    return {"case": case, "image": image(), "label": label, "prompts": prompts}


def test_overlays_of_the_worst_median_and_best_cases(tmp_path: Path) -> None:
    cases = {f"c{n}": float(n) for n in range(9)}
    roles = {"c0": "worst", "c1": "worst", "c3": "median", "c4": "median"}
    assert chosen(cases, 2) == {**roles, "c8": "best", "c7": "best"}
    assert chosen({"a": 1.0, "b": 0.5}, 2) == {"b": "worst", "a": "worst"}
    assert list(chosen({f"c{n}": n / 9 for n in range(3)}, 1)) == ["c0", "c1", "c2"]
    half = torch.where(torch.arange(9).view(-1, 1, 1) > 3, truth(), 0)
    answers = {"a": truth(), "b": half, "c": truth() * 0, "d": truth()}
    engine = Engine(lambda _, one: {"pred": {"slices": answers[str(one["case"])]}})
    Overlays(tmp_path / "out", LABELS, count=1, window="abdomen").attach(engine)
    engine.run([batch(name) for name in answers])
    index = json.loads((tmp_path / "out" / INDEX).read_text())["pictures"]
    shown = {one["case"]: one["role"] for one in index}
    assert shown == {"c": "worst", "b": "median", "d": "best"}
    assert index[0]["window"] == "abdomen"
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["b.png", "c", "c.png", "d.png", INDEX]
    assert [one["volume"] is None for one in index] == [False, True, True]


def test_volumes_are_kept_of_the_worst_alone(tmp_path: Path) -> None:
    """Whatever the order of the cases; no more than twice as many lie in the temporary folder."""
    answers = {}
    for number, depth in enumerate([5, 2, 6, 3, 7, 4, 8, 9]):
        answers[f"c{number}"] = torch.where(torch.arange(9).view(-1, 1, 1) < depth, truth(), 0)
    engine = Engine(lambda _, one: {"pred": {"slices": answers[str(one["case"])]}})
    overlays = Overlays(tmp_path, LABELS, count=2)
    overlays.attach(engine)
    kept = []

    @engine.on(Events.ITERATION_COMPLETED)
    def _() -> None:
        kept.append(sorted(path.stem for path in Path(overlays._folder.name).glob("*.npz")))

    engine.run([batch(name) | {"spacing": (3.0, 2.0, 1.0), "axes": "LPS"} for name in answers])
    assert kept[-1] == ["c0", "c1", "c3", "c5"]
    assert max(map(len, kept)) == 4
    index = json.loads((tmp_path / INDEX).read_text())["pictures"]
    assert [one["case"] for one in index if one["volume"]] == ["c1", "c3"]
    colours = [{"value": 1, "name": "liver", "colour": to_hex(COLOURS[0])}]
    colours += [{"value": 2, "name": "spleen", "colour": to_hex(COLOURS[1])}]
    assert index[1]["volume"] == {"thinned": [1, 1, 1], "labels": colours}
    shown = nib.load(tmp_path / "c3" / "prediction.nii.gz")
    assert shown.header.get_zooms() == (1.0, 2.0, 3.0)
    assert set(np.unique(shown.dataobj)) == {0, 1}  # the spleen lies on slice 4
    truth_there = np.asarray(nib.load(tmp_path / "c3" / "truth.nii.gz").dataobj)
    assert (truth_there == 2).sum() == (truth() == 2).sum()


@pytest.mark.parametrize(("rank", "drawn"), [(0, ["a", "a.png", INDEX]), (1, [])])
def test_a_case_of_two_processes_is_drawn_by_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, drawn: list[str]
) -> None:
    """As it is where the last shares are filled up."""
    monkeypatch.setattr("medsam_tune.evaluation.overlays.rank", lambda: rank)
    monkeypatch.setattr("medsam_tune.evaluation.overlays.gathered", lambda part: [part, part])
    run(Overlays(tmp_path, LABELS), [batch("a")])
    assert sorted(path.name for path in tmp_path.iterdir()) == drawn


def test_no_picture_is_drawn_if_none_is_wanted(tmp_path: Path) -> None:
    run(Overlays(tmp_path, LABELS, count=0), [batch("a"), batch("b")])
    assert not [*tmp_path.iterdir()]


def test_the_colours_of_few_labels_are_no_greys() -> None:
    spread = [max(colour) - min(colour) for colour in COLOURS]
    assert min(spread[:8]) > 0.25 > 0.1 > max(spread[8:])


def test_images_have_no_volume(tmp_path: Path) -> None:
    run(Overlays(tmp_path, LABELS), [batch("a", truth()[4:5]) | {"image": image()[4:5]}])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", INDEX]


def test_directions_and_a_bar_of_millimetres(tmp_path: Path, figures: list[Figure]) -> None:
    columns = {"truth": truth(), "model": truth()}
    panel = panel_of(image(), columns, LABELS, rows=1, place=Place((2.0, 4.0), "LPS"))
    draw(tmp_path / "a.png", panel, LABELS)
    axis = figures[0].axes[0]
    places = {text.get_text(): text.get_position() for text in axis.texts}
    assert places["R"][0] < 0.5 < places["L"][0]
    assert places["P"][1] < 0.5 < places["A"][1]  # from below
    (bar,) = axis.lines
    start, end = bar.get_xdata()
    assert f"{(end - start) * 2:g} mm" in places
    assert axis.get_aspect() == 2


def test_neighbours_of_a_slice_are_no_colours(tmp_path: Path, figures: list[Figure]) -> None:
    three = torch.stack([image()[:, 0] // 4, image()[:, 0], image()[:, 0] // 2], 1)
    draw_overlays(tmp_path / "a.png", three, {"truth": truth()}, LABELS, rows=1)
    draw_overlays(tmp_path / "b.png", three[4:5], {"truth": truth()[4:5]}, LABELS, rows=1)
    scan, photo = (figure.axes[0].images[0].get_array() for figure in figures)
    assert np.array_equal(scan, three[4, 1].numpy())
    assert photo.shape == (40, 50, 3)


def test_the_truth_is_dashed_over_the_answer(tmp_path: Path, figures: list[Figure]) -> None:
    columns = {"truth": truth(), "model": truth() * 0}
    draw_overlays(tmp_path / "a.png", image(), columns, {1: "liver"}, rows=1)
    own, model = (axis.collections for axis in figures[0].axes)
    assert [len(own), len(model)] == [1, 1]
    assert model[0].get_edgecolor()[0].tolist() == [1, 1, 1, 1]


def test_all_columns_show_the_same_part(tmp_path: Path, figures: list[Figure]) -> None:
    columns = {"truth": truth(), "model": truth() * 0}
    draw_overlays(tmp_path / "a.png", image(), columns, LABELS)
    shown = {(axis.get_xlim(), axis.get_ylim()) for axis in figures[0].axes}
    assert shown == {((-1, 50), (40, -1))}


def test_row_101_each_kind_has_its_column_and_name(tmp_path: Path, figures: list[Figure]) -> None:
    run(Overlays(tmp_path, LABELS), [batch("a", None, "slices", "box3d", "none")])
    titles = [axis.get_title().partition("\n")[0] for axis in figures[0].axes]
    assert titles[:4] == [
        "annotator",
        "by a box on every slice",
        "by one 3-D box",
        "without prompts",
    ]
    drawn = [{line.get_linestyle() for line in axis.lines} for axis in figures[0].axes]
    assert drawn[:4] == [set(), {"--"}, {":"}, set()]


def test_cases_without_labels_have_no_picture(tmp_path: Path) -> None:
    run(Overlays(tmp_path, LABELS), [batch("a", truth() * 0), batch("b")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "b.png", INDEX]


def test_nothing_is_drawn_where_nobody_annotated(tmp_path: Path, figures: list[Figure]) -> None:
    label = torch.where(torch.arange(9).view(-1, 1, 1) == 5, truth(), 99)
    run(Overlays(tmp_path, LABELS, ignore=99), [batch("a", label)])
    assert [text for text in texts(figures) if text.startswith("slice")] == ["slice 5"]


def test_names_with_dollars_are_no_formulas(tmp_path: Path, figures: list[Figure]) -> None:
    """matplotlib would raise at the second dollar."""
    columns = {"$a_{$": truth(), "b$": truth()}
    draw_overlays(tmp_path / "x.png", image(), columns, {1: "$_{x$", 2: "a$b"})
    assert (tmp_path / "x.png").is_file()
