"""A tuned model for each domain on one frozen base, each judged on the test cases of all.

    O/settings.json           what it is of; another one is refused
    O/ct, O/mr                the run of each domain, with its evaluation
    O/matrix/ct-by-mr         the test cases of ct by the model of mr; by-untouched, by-combined-...
    O/combined.safetensors    the mean of those domains' models that are LoRAs alone, two or more
    O/full-ct, O/full-ct-mr   full tuning on ct, and then on mr: what does it forget of ct?
    O/domains.json            the table, and where each domain's model is; with .md

What is done is not done again, as in a comparison.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from medsam_tune.bundle import run_bundle, training_configs
from medsam_tune.errors import DataError, listed
from medsam_tune.evaluation.compare import Method, read_method
from medsam_tune.evaluation.domain_table import KIND, dice_by_models, domains_text, forgotten
from medsam_tune.files import (
    FORMAT,
    file_hash,
    hold_folder,
    read_json,
    write_json,
    written_whole,
)
from medsam_tune.inference.domain_runs import DOMAINS, DOMAINS_FORMAT
from medsam_tune.methods.domains import Domains
from medsam_tune.methods.export import export_sam
from medsam_tune.methods.header import TunedHeader
from medsam_tune.methods.tuned import load_tuned, read_header, save_tuned, tuned_names, tuned_size
from medsam_tune.runs import RECORD, read_record, read_state, tuned_file
from medsam_tune.sam.build import build_sam
from medsam_tune.tasks import (
    SETTINGS,
    for_evaluation,
    for_training,
    is_evaluated,
    refuse_other_tasks,
    tried,
)

FULL = "full"
"""Method whose forgetting is measured."""
UNTOUCHED, COMBINED = "untouched", "combined"
"""Models of the matrix beside those of the domains; no domain has these names."""


@dataclass(frozen=True)
class Domain:
    """A domain: its data, and what its training has beside the others'.

    Attributes:
        name: its name, lower-case letters, digits and "_".
        datalist: datalist, .json.
        bundle: see `bundle_folder`.
        method: key of `METHODS`.
        overlays: names of overlays in the bundle, or paths.
        settings: settings for it alone.
    """

    name: str
    datalist: Path
    bundle: str
    method: str
    overlays: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is tuned, and how.

    Attributes:
        domains: at least two.
        output: folder of the runs.
        model: base model.
        checkpoint: weights of the base model; None for the embedded ones.
        image_size: side of the model's input, pixels; None is the model's own.
        class_agnostic: tune SAM's own prompting, which knows no labels. LoRAs can then be combined,
            those of all domains that are tuned so.
        forgetting: a domain, and the one that full tuning goes on with; None leaves that out.
        settings: further settings of all trainings and evaluations, as far as they have them.
    """

    domains: Sequence[Domain]
    output: Path
    model: str = "nano"
    checkpoint: Path | None = None
    image_size: int | None = None
    class_agnostic: bool = False
    forgetting: tuple[str, str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def domain(self, name: str) -> Domain:
        """The domain of a name."""
        return next(one for one in self.domains if one.name == name)


def tune_domains(plan: Plan) -> tuple[str, dict[str, str]]:
    """Train and evaluate what is missing, and write the table of all.

    A domain that fails does not end the others.

    Returns:
        the table as text; and name of a task that failed -> why.

    Raises:
        ValueError: an overlay that does not fit the method.
        DataError: the output folder holds something else, or no domain came to its end.
        SystemExit: a training was stopped by a signal; the same call continues it.
    """
    said = _said(plan)
    for one in plan.domains:
        _configs(plan, one, one.method, plan.class_agnostic)
    for name in plan.forgetting or ():
        _configs(plan, plan.domain(name), FULL, True)
    refuse_other_tasks(plan.output, said, DOMAINS_FORMAT, "set of domains", "further domains")
    described = _described(plan)
    plan.output.mkdir(parents=True, exist_ok=True)
    lock = hold_folder(plan.output, "tunes domains")
    try:
        write_json(plan.output / SETTINGS, {**said, "domains": described})
        return _tune(plan)
    finally:
        lock.release()


def _tune(plan: Plan) -> tuple[str, dict[str, str]]:
    failed: dict[str, str] = {}
    task = partial(tried, "domains")
    done = [one for one in plan.domains if task(one.name, failed, partial(_made, plan, one))]
    if not done:
        why = "; ".join(f"{name}: {line}" for name, line in failed.items())
        raise DataError(f"{plan.output}: no domain came to its end. {why}")
    first, *others = done
    done = [first]
    for one in others:
        if task(one.name, failed, partial(_refuse_other_base, plan, first, one)):
            done.append(one)
    models: dict[str, Path | None] = {UNTOUCHED: None}
    models |= {one.name: tuned_file(plan.output / one.name) for one in done}
    loras = [one for one in done if _is_lora_alone(models[one.name])]
    if len(loras) > 1:
        combined = plan.output / f"{COMBINED}.safetensors"
        if task(COMBINED, failed, partial(_combine, plan, loras, combined)):
            models[COMBINED] = combined
    matrix: dict[str, list[Method]] = {}
    for one in done:
        places = {name: _cell(plan, one.name, name, tuned) for name, tuned in models.items()}
        there = [
            read_method(name, [place])
            for name, place in places.items()
            if task(
                f"{one.name} by {name}",
                failed,
                partial(_judged, plan, one, place, models[name]),
            )
        ]
        matrix[one.name] = there
    lost: list[Method] = []
    if plan.forgetting:
        task("forgetting", failed, partial(_forget, plan, lost))
    found = _found(plan, done, matrix, lost, failed)
    found["combined"] = [one.name for one in loras] if COMBINED in models else []
    text = domains_text(found)
    with written_whole(plan.output / DOMAINS) as file:
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    with written_whole((plan.output / DOMAINS).with_suffix(".md")) as file:
        file.write_text(text, encoding="utf-8")
    return text, failed


def _made(plan: Plan, domain: Domain) -> None:
    """Train and evaluate a domain, as far as it is not done."""
    run = plan.output / domain.name
    _train(plan, domain, run, domain.method, plan.class_agnostic, plan.checkpoint)
    if read_record(run).prompted is False:
        raise DataError(f"{run}: takes no prompts, and domains are compared by boxes.")
    if not is_evaluated(run, [KIND]):
        settings = for_evaluation(domain.bundle, _settings(plan, domain), slices=False)
        run_bundle(domain.bundle, ["evaluate.yaml"], {"run_dir": run, **settings})


def _train(
    plan: Plan,
    domain: Domain,
    run: Path,
    method: str,
    class_agnostic: bool,
    checkpoint: Path | None,
) -> None:
    if read_state(run).get("state") == "finished":
        return
    base = _base(plan, checkpoint)
    configs = _configs(plan, domain, method, class_agnostic)
    own: dict[str, Any] = {"datalist": domain.datalist, "output_dir": run, **base}
    own |= {"resume": True} if (run / RECORD).is_file() else {}
    own |= for_training(domain.bundle, _settings(plan, domain))
    run_bundle(domain.bundle, configs, own)


def _configs(plan: Plan, domain: Domain, method: str, class_agnostic: bool) -> list[str]:
    base = _base(plan, plan.checkpoint)
    overlays = domain.overlays
    try:
        return training_configs(
            domain.bundle, method, overlays, class_agnostic=class_agnostic, **base
        )
    except ValueError as error:
        raise ValueError(f"domain {domain.name}, tuned by {method}: {error}") from error


def _base(plan: Plan, checkpoint: Path | None) -> dict[str, Any]:
    given = {"model": plan.model, "checkpoint": checkpoint, "image_size": plan.image_size}
    return {key: value for key, value in given.items() if value is not None}


def _settings(plan: Plan, domain: Domain) -> dict[str, Any]:
    return {**plan.settings, **domain.settings}


def _refuse_other_base(plan: Plan, first: Domain, other: Domain) -> None:
    """Refuse a domain that does not stand on the base of the first."""
    bases = [_header(plan, one).base for one in (first, other)]
    if bases[0] != bases[1]:
        found, expected = (listed(f"{k} {v}" for k, v in one.as_dict().items()) for one in bases)
        raise DataError(
            f"{plan.output / other.name}: stands on another base ({expected}) than "
            f"{first.name} ({found}); domains share one. Give both the same size and bands."
        )


def _header(plan: Plan, domain: Domain) -> TunedHeader:
    return read_header(tuned_file(plan.output / domain.name))


def _is_lora_alone(tuned: Path | None) -> bool:
    return tuned is not None and all(".lora_" in key for key in tuned_names(tuned))


def _combine(plan: Plan, domains: Sequence[Domain], path: Path) -> None:
    """Write the mean of the domains' LoRAs as a tuned file."""
    checkpoint = read_record(plan.output / domains[0].name).checkpoint
    base = _header(plan, domains[0]).base
    model = Domains(
        build_sam(base.name, checkpoint, base.image_size, base.in_channels, base.normalisation)
    )
    for one in domains:
        model.add(one.name, tuned_file(plan.output / one.name))
    mean = model.combine(COMBINED, {one.name: 1 / len(domains) for one in domains})
    save_tuned(mean, path)


def _cell(plan: Plan, cases: str, model: str, tuned: Path | None) -> Path:
    """The folder with the evaluation of a domain's test cases by a model.

    What is combined changes with a further domain, so that its folder is named after its content.
    """
    if cases == model:
        return plan.output / cases
    content = f"-{file_hash(tuned)[:8]}" if tuned is not None and model == COMBINED else ""
    return plan.output / "matrix" / f"{cases}-by-{model}{content}"


def _judged(
    plan: Plan,
    domain: Domain,
    place: Path,
    tuned: Path | None,
    checkpoint: Path | None = None,
) -> None:
    """Evaluate a domain's test cases by a model, as far as it is not done."""
    if is_evaluated(place, [KIND]):
        return
    given: dict[str, Any] = {"run_dir": plan.output / domain.name, "other": tuned}
    given |= {"output_dir": place / "evaluation", "prompts": [KIND]}
    given |= {} if checkpoint is None else {"other_checkpoint": checkpoint}
    given |= for_evaluation(domain.bundle, _settings(plan, domain), slices=False)
    run_bundle(domain.bundle, ["evaluate.yaml", "other_model.yaml"], given)


def _forget(plan: Plan, lost: list[Method]) -> None:
    """Tune a whole model on one domain, and then on another; judge both on the first."""
    assert plan.forgetting is not None
    old, new = (plan.domain(name) for name in plan.forgetting)
    before, after = (f"{FULL}-{old.name}", f"{FULL}-{old.name}-{new.name}")
    _train(plan, old, plan.output / before, FULL, True, plan.checkpoint)
    tuned = tuned_file(plan.output / before)
    weights = plan.output / f"{before}.pth"
    if not weights.is_file():
        export_sam(load_tuned(tuned, checkpoint=plan.checkpoint), weights)
    _train(plan, new, plan.output / after, FULL, True, weights)
    steps = ((before, plan.checkpoint), (after, weights))
    for name, checkpoint in steps:
        tuned = tuned_file(plan.output / name)
        place = _cell(plan, old.name, name, tuned)
        _judged(plan, old, place, tuned, checkpoint)
        lost.append(read_method(name, [place]))


def _found(
    plan: Plan,
    domains: Sequence[Domain],
    matrix: Mapping[str, Sequence[Method]],
    lost: Sequence[Method],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """The table as JSON."""
    about = {}
    for one in domains:
        tuned = tuned_file(plan.output / one.name)
        parameters, size = tuned_size(tuned)
        about[one.name] = {
            "bundle": one.bundle,
            "method": one.method,
            "parameters": parameters,
            "bytes": size,
            "tuned_sha256": file_hash(tuned),
        }
    pair = plan.forgetting
    return {
        FORMAT: DOMAINS_FORMAT,
        "base": _header(plan, domains[0]).base.as_dict(),
        "domains": about,
        "matrix": {cases: dice_by_models(models) for cases, models in matrix.items() if models},
        "forgetting": forgotten(*pair, *lost) if pair and len(lost) == 2 else None,
        "failed": dict(failed),
    }


def _described(plan: Plan) -> dict[str, Any]:
    """What each domain is of, with those of earlier calls.

    Raises:
        DataError: a domain was of something else.
    """
    path = plan.output / SETTINGS
    before: dict[str, Any] = read_json(path)["domains"] if path.is_file() else {}
    now = {
        one.name: {
            "datalist": file_hash(one.datalist),
            "bundle": one.bundle,
            "method": one.method,
            "overlays": [Path(overlay).name for overlay in one.overlays],
            "settings": {key: str(value) for key, value in sorted(one.settings.items())},
        }
        for one in plan.domains
    }
    for name in now.keys() & before.keys():
        changed = [key for key in now[name] if before[name].get(key) != now[name][key]]
        if changed:
            raise DataError(
                f"{plan.output}: its domain {name} has another {listed(changed)} now. Give the "
                "same again, name the domain otherwise, or choose another --output."
            )
    return {**before, **now}


def _said(plan: Plan) -> dict[str, Any]:
    """What all domains of a folder have in common."""
    return {
        FORMAT: DOMAINS_FORMAT,
        "model": plan.model,
        "checkpoint": None if plan.checkpoint is None else str(plan.checkpoint.absolute()),
        "image_size": plan.image_size,
        "class_agnostic": plan.class_agnostic,
        "settings": {key: str(value) for key, value in sorted(plan.settings.items())},
    }
