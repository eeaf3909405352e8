"""A tuned model for each domain on one frozen base, each judged on the test cases of all.

    O/settings.json           what it is of; another one is refused
    O/ct, O/mr                the run of each domain, with its evaluation
    O/matrix/ct-by-mr-...     the test cases of ct by the model of mr; by-untouched, by-combined-...
    O/combined.safetensors    the mean of those domains' models that are LoRAs alone, two or more
    O/full-ct                 full tuning on ct; full-ct-....pth is the same as a checkpoint
    O/full-ct-mr-...          full tuning on mr from there on: what does it forget of ct?
    O/domains.json            the table, and where each domain's model is; with .md

What is done is not done again, as in a comparison. The last letters of a name are of the tuned file
that it was made with: a model that is tuned again is judged again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medsam_tune.bundle import run_bundle
from medsam_tune.domain_plan import FULL, Domain, Plan, described, said
from medsam_tune.errors import DataError, listed
from medsam_tune.evaluation.compare import Method, read_method
from medsam_tune.evaluation.domain_table import KIND, dice_by_models, domains_text, forgotten
from medsam_tune.files import FORMAT, file_hash, hold_folder, write_json, written_whole
from medsam_tune.inference.domain_runs import DOMAINS, DOMAINS_FORMAT
from medsam_tune.methods.domains import Domains, not_summed
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

UNTOUCHED, COMBINED = "untouched", "combined"
"""Models of the matrix beside those of the domains; no domain has these names."""


def tune_domains(plan: Plan) -> tuple[str, dict[str, str]]:
    """Train and evaluate what is missing, and write the table of all.

    A domain that fails does not end the others.

    Returns:
        the table as text; and name of a task that failed -> why.

    Raises:
        ValueError: an overlay or an option that does not fit the method.
        DataError: the output folder holds something else, or no domain came to its end.
        SystemExit: a training was stopped by a signal; the same call continues it.
    """
    common = said(plan)
    plan.refuse_odd()
    refuse_other_tasks(plan.output, common, DOMAINS_FORMAT, "set of domains", "further domains")
    domains = described(plan)
    plan.output.mkdir(parents=True, exist_ok=True)
    lock = hold_folder(plan.output, "tunes domains")
    try:
        write_json(plan.output / SETTINGS, {**common, "domains": domains})
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
    loras = [one for one in done if _is_summed(tuned_file(plan.output / one.name))]
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
        settings = for_evaluation(
            domain.bundle, plan.settings_of(domain, domain.method), slices=False
        )
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
    configs = plan.configs(domain, method, class_agnostic)
    own: dict[str, Any] = {"datalist": domain.datalist, "output_dir": run}
    own |= plan.base(checkpoint)
    own |= {"resume": True} if (run / RECORD).is_file() else {}
    own |= for_training(domain.bundle, plan.settings_of(domain, method))
    run_bundle(domain.bundle, configs, own)


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


def _is_summed(tuned: Path) -> bool:
    """Whether a tuned file is a LoRA alone, of a kind that has a weighted sum."""
    alone = all(".lora_" in key for key in tuned_names(tuned))
    return alone and not_summed(read_header(tuned).tuning.options) is None


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

    A model that is tuned again, or combined of others, is judged anew: its file is in the name.
    """
    if cases == model:
        return plan.output / cases
    content = "" if tuned is None else f"-{_short_hash(tuned)}"
    return plan.output / "matrix" / f"{cases}-by-{model}{content}"


def _short_hash(tuned: Path) -> str:
    return file_hash(tuned)[:8]


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
    given |= for_evaluation(domain.bundle, plan.settings_of(domain, domain.method), slices=False)
    run_bundle(domain.bundle, ["evaluate.yaml", "other_model.yaml"], given)


def _forget(plan: Plan, lost: list[Method]) -> None:
    """Tune a whole model on one domain, and then on another; judge both on the first."""
    assert plan.forgetting is not None
    old, new = (plan.domain(name) for name in plan.forgetting)
    before, after = (f"{FULL}-{old.name}", f"{FULL}-{old.name}-{new.name}")
    _train(plan, old, plan.output / before, FULL, True, plan.checkpoint)
    tuned = tuned_file(plan.output / before)
    content = _short_hash(tuned)  # what goes on from it is of this file alone
    weights = plan.output / f"{before}-{content}.pth"
    if not weights.is_file():
        export_sam(load_tuned(tuned, checkpoint=plan.checkpoint), weights)
    run = plan.output / f"{after}-{content}"
    _train(plan, new, run, FULL, True, weights)
    steps = ((before, tuned, plan.checkpoint), (after, tuned_file(run), weights))
    for name, tuned, checkpoint in steps:
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
