"""Trials: each brings one fault about, and says what was wrong afterwards; nothing is right."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

from tests.faults.runs import (
    Yard,
    checkpoint,
    damaged_mask,
    leftovers,
    masks_differ,
    store_differs,
)
from tests.server import Command, Outcome

DISK, MEMORY = 5, 6
"""Exit codes of a full disk, and of too little memory or a dead worker."""
STORE = "writing the slice store"
TRAINING = "training, from its first moment"
SAVING = "saving into the run folder"
PREDICTING = "predicting many scans"
PLACES = (STORE, TRAINING, SAVING, PREDICTING)
_METHODS = (
    "decoder",
    "lora",
    "adapter",
    "decoder",
    "prompt",
    "full",
)  # by turns; full takes longest
_UNFAIR = "was not killed: it had ended"


def _draw(place: str, number: int) -> random.Random:
    return random.Random(f"{place} {number}")


def killed(yard: Yard, place: str, number: int) -> str:
    """Kill a command at a moment that the number draws, go on, and compare with no kill."""
    for attempt in range(5):  # a machine that is less busy than before ends sooner
        drawn = _draw(place, number + 1000 * attempt)
        trials = {STORE: _killed_store, TRAINING: _killed_training}
        trials |= {SAVING: _killed_saving, PREDICTING: _killed_predicting}
        wrong = trials[place](yard, drawn, number, 0.9 * 0.6**attempt)
        if wrong != _UNFAIR:
            break
    return wrong


def _killed_store(yard: Yard, drawn: random.Random, number: int, _: float) -> str:
    store = _fresh(yard, f"store_{number}.slices")
    words = ("prepare", "d.json", "--slices-dir", store.name)
    options = {"folder": str(store), "count": drawn.randint(1, 620), "delay": _delay(drawn)}
    first = yard.server.one(*words, mishap="killed_at_file", options=options)
    if first.code == 0:
        return _UNFAIR
    second = yard.server.one(*words)
    return _cleared(_ended(second) or store_differs(yard.folder / "d.slices", store), store)


def _killed_training(yard: Yard, drawn: random.Random, number: int, share: float) -> str:
    method = _METHODS[number % len(_METHODS)]
    run = _fresh(yard, f"training_{number}")
    cold = {"slices_dir": _fresh(yard, f"cold_{number}.slices").name} if number % 4 == 0 else {}
    after = drawn.uniform(0, share * yard.seconds(method))
    first = yard.server.one(*yard.train(method, run.name, **cold), after=after)
    if first.code == 0:
        return _UNFAIR
    wrong = _ended(yard.finish(method, run.name, **cold)) or yard.wrong(method, run.name)
    return _cleared(wrong, run, yard.folder / f"cold_{number}.slices")


def _killed_saving(yard: Yard, drawn: random.Random, number: int, _: float) -> str:
    method = _METHODS[number % len(_METHODS)]
    run = _fresh(yard, f"saving_{number}")
    count = drawn.randint(1, yard.events(method) - 5)
    options = {"folder": str(run), "count": count, "delay": _delay(drawn)}
    words = yard.train(method, run.name)
    first = yard.server.one(*words, mishap="killed_at_file", options=options)
    if first.code == 0:
        return _UNFAIR
    return _cleared(_ended(yard.finish(method, run.name)) or yard.wrong(method, run.name), run)


def _killed_predicting(yard: Yard, drawn: random.Random, number: int, _: float) -> str:
    whole, out = yard.predicted(), _fresh(yard, f"predicting_{number}")
    events = int((yard.folder / "predicted_events").read_text())
    options = {"folder": str(out), "count": drawn.randint(1, events), "delay": _delay(drawn)}
    first = yard.server.one(*yard.predict(out.name), mishap="killed_at_file", options=options)
    if first.code == 0:
        return _UNFAIR
    half = damaged_mask(out, whole) if out.is_dir() else ""
    records = [path for path in out.glob("*.json") if json.loads(path.read_text())["finished"]]
    before = {path: path.stat().st_mtime_ns for path in records}
    second = yard.server.one(*yard.predict(out.name, resume=True))
    again = [path.name for path, then in before.items() if path.stat().st_mtime_ns != then]
    if again:
        return f"done again: {again}"
    return _cleared(half or _ended(second) or masks_differ(whole, out), out)


def _delay(drawn: random.Random) -> float:
    """At the file's change itself, or a moment later, within a write."""
    return drawn.choice([0.0, drawn.uniform(0, 0.004)])


def resumed(yard: Yard, method: str, boundary: bool, workers: int) -> str:
    """Kill a training between two epochs or within one, resume it, and compare with no kill.

    The undisturbed run has no workers: their number changes nothing.
    """
    run = _fresh(yard, f"resumed_{method}_{boundary:d}_{workers}")
    # A checkpoint after step 1 and after each epoch, or after each step as well.
    settings = {"num_workers": workers, "checkpoint_minutes": 10 if boundary else 0}
    options = {"folder": str(run), "target": "last.pt", "count": 3 if boundary else 8}
    words = yard.train(method, run.name, **settings)
    first = yard.server.one(*words, mishap="killed_at_file", options=options)
    if first.code != -signal.SIGKILL:
        return f"exit {first.code}, not killed: {_last(first)}"
    step = checkpoint(run)["trainer"]
    within = step["iteration"] % step["epoch_length"]
    if (within == 0) != boundary:
        return f"was killed at step {step['iteration']}, which is the other place"
    second = yard.finish(method, run.name, **settings)
    return _cleared(_ended(second) or yard.wrong(method, run.name), run)


def killed_at_the_end(yard: Yard) -> str:
    """Kill a training when its last checkpoint is there and its state is not yet finished."""
    run = _fresh(yard, "killed_at_the_end")
    words = yard.train("decoder", run.name, checkpoint_minutes=10)
    # At its start, and after each of the three epochs; the fifth says that it is finished.
    options = {"folder": str(run), "target": "state.json", "count": 5}
    first = yard.server.one(*words, mishap="killed_at_file", options=options)
    if first.code == 0 or checkpoint(run)["trainer"]["iteration"] != 12:
        return f"was killed elsewhere: exit {first.code}"
    wrong = _ended(yard.finish("decoder", run.name)) or yard.wrong("decoder", run.name)
    return _cleared(wrong, run)


def signalled(yard: Yard, number: int, where: str) -> str:
    """Send SIGTERM or SIGINT at the start, in a step, while saving or in the validation."""
    run = _fresh(yard, f"signalled_{number}_{where.replace(' ', '_')}")
    options = {"folder": str(run), "number": number}
    options |= {
        "the start": {"count": 1},
        "a step": {"target": "last.pt", "count": 3, "delay": 0.001},
        "saving": {"target": "last.pt", "count": 6},
        "the validation": {"target": "tuned.safetensors", "count": 1},
    }[where]
    words = yard.train("decoder", run.name, checkpoint_minutes=0)
    first = yard.server.one(*words, mishap="killed_at_file", options=options)
    started = where != "the start"
    if first.code != 128 + number and (started or first.code != -number):
        return f"exit {first.code}, expected {128 + number}: {_last(first)}"
    if started and "--resume" not in _last(first):
        return f"no line that resumes it: {_last(first)}"
    if started and '"stopped"' not in (run / "state.json").read_text():
        return f"state {(run / 'state.json').read_text()}"
    wrong = _ended(yard.finish("decoder", run.name, checkpoint_minutes=0))
    return _cleared(wrong or yard.wrong("decoder", run.name), run)


def full_disk(yard: Yard, command: str, share: float) -> str:
    """Give a command a disk of a share of what it needs; make room, go on, and compare."""
    place = _fresh(yard, f"disk_{command}_{share}")
    keep = _fresh(yard, f"{place.name}_kept")
    if command == "predict":
        needed, words = _size(yard.predicted()), yard.predict(place.name)
    elif command == "prepare":
        needed, words = _size(yard.folder / "d.slices"), ["prepare", "d.json", "--slices-dir"]
        words.append(place.name)
    else:
        needed, words = _size(yard.whole("decoder")), yard.train("decoder", place.name)
    options = {"folder": str(place), "size": int(share * needed), "keep": str(keep)}
    first = yard.server.one(*words, mishap="small_disk", options=options)
    if first.code == 0:
        return "was not stopped: the disk is large enough"
    # `prepare` estimates first: what cannot fit is refused as a choice of the user.
    estimated = command == "prepare" and "Make room, or choose another folder with" in first.text
    wrong = _one_line(first, 1 if estimated else DISK) or leftovers(keep)
    if wrong:
        return _cleared(wrong, place)
    place.rmdir()
    keep.rename(place)
    if command == "prepare":
        second = yard.server.one(*words)
        return _cleared(_ended(second) or store_differs(yard.folder / "d.slices", place), place)
    if command == "predict":
        second = yard.server.one(*yard.predict(place.name, resume=True))
        return _cleared(_ended(second) or masks_differ(yard.predicted(), place), place)
    wrong = _ended(yard.finish("decoder", place.name)) or yard.wrong("decoder", place.name)
    return _cleared(wrong, place)


def little_memory(yard: Yard, command: str, more: int) -> str:
    """Allow a command some bytes more than its libraries have; then all, and compare."""
    place = _fresh(yard, f"memory_{command}_{more}")
    words = yard.train("decoder", place.name)
    if command == "prepare":
        words = ["prepare", "d.json", "--slices-dir", place.name]
    first = yard.server.one(*words, mishap="little_memory", options={"more": more})
    if first.code == 0:
        return "was not stopped: the memory is enough"
    if wrong := _one_line(first, MEMORY):
        return wrong
    if command == "prepare":
        second = yard.server.one(*words)
        return _cleared(_ended(second) or store_differs(yard.folder / "d.slices", place), place)
    wrong = _ended(yard.finish("decoder", place.name)) or yard.wrong("decoder", place.name)
    return _cleared(wrong, place)


def dead_worker(yard: Yard, delay: float) -> str:
    """Kill a worker of the loader; then go on, and compare."""
    run = _fresh(yard, f"worker_{delay}")
    words = yard.train("decoder", run.name, num_workers=2)
    first = yard.server.one(*words, mishap="dead_worker", options={"delay": delay})
    if wrong := _one_line(first, MEMORY):
        return wrong
    return _cleared(
        _ended(yard.finish("decoder", run.name)) or yard.wrong("decoder", run.name), run
    )


def not_a_number(yard: Yard, epochs: int) -> str:
    """Let the loss become NaN after some epochs; then go on with a sound rate, and compare."""
    run = _fresh(yard, f"nan_{epochs}")
    options = {"folder": str(run), "target": "last.pt", "count": epochs + 2}
    words = yard.train("decoder", run.name, checkpoint_minutes=10)
    yard.server.one(*words, mishap="killed_at_file", options=options)
    before = {name: _bytes(run / name) for name in ("last.pt", "tuned.safetensors")}
    second = yard.finish("decoder", run.name, checkpoint_minutes=10, lr=1e30)
    if wrong := _one_line(second, 1):
        return wrong
    if "phantom_" not in _last(second) or "loss is" not in _last(second):
        return f"the cases are not named: {_last(second)}"
    if before != {name: _bytes(run / name) for name in before}:
        return "last.pt or the tuned file is another one"
    return _cleared(
        _ended(yard.finish("decoder", run.name)) or yard.wrong("decoder", run.name), run
    )


def two_trainings(yard: Yard, apart: float) -> str:
    """Train into one folder twice at the same time; the second is `apart` seconds later."""
    run = _fresh(yard, f"two_{apart}")
    words = tuple(yard.train("decoder", run.name))
    wait = Command(words, mishap="later", options={"seconds": apart})
    outcomes = sorted(yard.server.run(Command(words), wait), key=lambda each: each.code)
    if [each.code for each in outcomes] != [0, 1]:
        return f"exit codes {[each.code for each in outcomes]}: {_last(outcomes[1])}"
    wrong = _one_line(outcomes[1], 1)
    if not wrong and "another process trains into it" not in _last(outcomes[1]):
        wrong = _last(outcomes[1])
    return _cleared(wrong or yard.wrong("decoder", run.name), run)


def two_predictions(yard: Yard) -> str:
    """Predict into one folder twice at the same time."""
    whole, out = yard.predicted(), _fresh(yard, "two_predictions")
    words = tuple(yard.predict(out.name))
    outcomes = sorted(yard.server.run(Command(words), Command(words)), key=lambda each: each.code)
    if [each.code for each in outcomes] != [0, 1]:
        return f"exit codes {[each.code for each in outcomes]}: {_last(outcomes[1])}"
    wrong = _one_line(outcomes[1], 1)
    if not wrong and "another process predicts into it" not in _last(outcomes[1]):
        wrong = _last(outcomes[1])
    return _cleared(wrong or masks_differ(whole, out), out)


def two_in_a_store(yard: Yard, training: bool) -> str:
    """Fill one store from two processes: two of `prepare`, or `prepare` and a training."""
    store, run = _fresh(yard, f"shared_{training:d}.slices"), _fresh(yard, f"sharing_{training:d}")
    words = ("prepare", "d.json", "--slices-dir", store.name)
    other = tuple(yard.train("decoder", run.name, slices_dir=store.name)) if training else words
    outcomes = yard.server.run(Command(words), Command(other))
    wrong = next((_ended(each) for each in outcomes if each.code), "")
    wrong = wrong or store_differs(yard.folder / "d.slices", store)
    if training and not wrong:
        wrong = yard.wrong("decoder", run.name)
    return _cleared(wrong, store, run)


def _fresh(yard: Yard, name: str) -> Path:
    path = yard.folder / name
    shutil.rmtree(path, ignore_errors=True)
    return path


def _cleared(wrong: str, *folders: Path) -> str:
    """Remove what a trial wrote, unless something is wrong with it."""
    for folder in () if wrong else folders:
        shutil.rmtree(folder, ignore_errors=True)
    return wrong


def _ended(outcome: Outcome) -> str:
    if outcome.hung:
        return "hangs"
    return f"exit {outcome.code}: {_last(outcome)}" if outcome.code else ""


def _one_line(outcome: Outcome, code: int) -> str:
    if outcome.hung:
        return "hangs"
    said = [line for line in outcome.text.splitlines() if line.startswith("medsam-tune: ")]
    if outcome.code != code or len(said) != 1 or "Traceback" in outcome.text:
        return f"exit {outcome.code}, expected {code} and one line: {_last(outcome)}"
    return ""


def _last(outcome: Outcome) -> str:
    return (outcome.text.splitlines() or [""])[-1]


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
