"""The command that tunes a model for each domain, and what others take from its folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsam_tune.cli.bundles import bundle_of_data
from medsam_tune.cli.next_steps import after_domains, told_to_continue
from medsam_tune.cli.options import METHODS, refuse_random, refuse_unknown
from medsam_tune.errors import DataError, listed, nearest

if TYPE_CHECKING:
    from medsam_tune.domain_plan import Domain, Plan

_RECIPE = {
    "method": str,
    "model": str,
    "checkpoint": str,
    "image_size": int,
    "class_agnostic": bool,
    "forgetting": list,
    "settings": dict,
    "domains": dict,
}
_DOMAIN = {"datalist": str, "bundle": str, "method": str, "overlays": list, "settings": dict}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_TAKEN = ("untouched", "combined", "matrix", "settings")
_SET = (  # settings that the command gives itself
    *("bundle_root", "datalist", "output_dir", "run_dir", "method", "model", "checkpoint"),
    *("image_size", "resume", "prompts", "subset", "other", "other_checkpoint", "prompted"),
)


def domains(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="YAML: method, and domains (name -> datalist, overlays, settings, method); and "
            "model, checkpoint, image_size, class_agnostic, settings, forgetting."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder of the domains' runs. The same again continues it.")
    ],
) -> None:
    """Tune a small file for each domain on one frozen base, and judge each on the cases of all.

    `predict --domains OUTPUT` then segments each scan of a mixed datalist by its domain's model.
    What is done is kept, and what was stopped is continued. A domain that fails does not end the
    others; the exit code is then 3.
    """
    from medsam_tune.failures import REFUSED
    from medsam_tune.multi_domain import tune_domains

    plan = read_recipe(recipe, output)
    with told_to_continue():
        text, failed = tune_domains(plan)
    typer.echo(text.rstrip())
    after_domains(output)
    if failed:
        raise typer.Exit(REFUSED)


def read_recipe(path: Path, output: Path) -> Plan:
    """The plan that a recipe describes; its paths are relative to its folder.

    Args:
        path: YAML file.
        output: folder of the runs.

    Raises:
        DataError: no such file, or content of another form.
        ValueError: an unknown method or model.
    """
    from medsam_tune.domain_plan import Plan

    content = _checked(path, _yaml(path), _RECIPE, "")
    if not content.get("domains"):
        raise DataError(f"{path}: says no domains; docs/models.md shows what it says.")
    weights = content.get("checkpoint")
    checkpoint = None if weights is None else path.parent / weights
    refuse_random(content.get("model", "nano"), checkpoint)
    method = content.get("method")
    found = [_domain(path, name, entry, method) for name, entry in content["domains"].items()]
    if len(found) < 2:
        raise DataError(f"{path}: has {len(found)} domain; expected two or more. Add another.")
    pair = content.get("forgetting")
    names = [one.name for one in found]
    if pair is not None and (len(pair) != 2 or pair[0] == pair[1] or not {*pair} <= {*names}):
        raise DataError(
            f"{path}: forgetting is {pair}; expected two of the domains {listed(names)}: the one "
            "that is forgotten, and the one that is learned then."
        )
    options = {key: content[key] for key in ("model", "image_size") if key in content}
    return Plan(
        domains=found,
        output=output,
        checkpoint=checkpoint,
        class_agnostic=content.get("class_agnostic", False),
        forgetting=None if pair is None else (pair[0], pair[1]),
        settings=content.get("settings", {}),
        **options,
    )


def domain_runs(folder: Path, domain: str | None, scans: Path) -> dict[str | None, list[Path]]:
    """Domain of a datalist's scans -> the run that segments them; None for all scans.

    Args:
        folder: folder of `domains`.
        domain: the domain of all scans; None: the datalist says it of each.
        scans: the scans, or a datalist.

    Raises:
        DataError: no such domain; nothing says the domain of a scan.
    """
    from medsam_tune.cases.datalist import read_datalist
    from medsam_tune.cases.places import DOMAIN
    from medsam_tune.inference.domain_runs import read_domains

    known = read_domains(folder)
    if domain is not None:
        return {None: [known.run(domain)]}
    if scans.suffix.lower() != ".json" or not scans.is_file():
        raise DataError(
            f"{scans}: is no datalist that says the domain of each scan; expected --domain, one of "
            f"{listed(known.runs)}, for all of them."
        )
    cases = read_datalist(scans, with_leaks=True, with_missing=True, unlabelled=True).cases
    said = {case.id: case.columns.get(DOMAIN) for case in cases}
    if silent := [name for name, found in said.items() if found is None]:
        raise DataError(
            f"{scans}: {len(silent)} of {len(said)} scans have no {DOMAIN}: {listed(silent, 5)}; "
            f'expected "{DOMAIN}" in each entry, one of {listed(known.runs)}; or --domain for all.'
        )
    return {name: [known.run(name)] for name in dict.fromkeys(said.values()) if name}


def one_by_one(jobs: Mapping[str | None, Callable[[], None]]) -> None:
    """Predict the scans of several domains, each by its bundle.

    Args:
        jobs: domain -> its prediction. One that fails, or refuses scans, does not end the others.

    Raises:
        SystemExit: scans were refused: 3, or 1 where none is done; or what else ended a job.
    """
    from medsam_tune.failures import REFUSED, USER
    from medsam_tune.tasks import tried

    failed: dict[str, str] = {}
    refused = 0
    for name, job in jobs.items():
        try:
            tried("predict", str(name), failed, job)
        except SystemExit as error:
            if error.code == USER:
                failed[str(name)] = "none of its scans is done"
            elif error.code == REFUSED:
                refused += 1
            elif error.code:
                raise
    if failed or refused:
        raise SystemExit(USER if len(failed) == len(jobs) else REFUSED)


def _domain(path: Path, name: Any, entry: Any, method: str | None) -> Domain:
    from medsam_tune.domain_plan import Domain

    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _TAKEN:
        raise DataError(
            f"{path}: a domain is named {name!r}; expected a letter, then letters, digits and _, "
            f"all lower-case, and none of {', '.join(_TAKEN)}, as its folder has the name."
        )
    content = _checked(path, entry, _DOMAIN, f"domains::{name}")
    if "datalist" not in content:
        raise DataError(f"{path}: the domain {name} has no datalist; `medsam-tune split` makes it.")
    datalist = path.parent / content["datalist"]
    if not datalist.is_file():
        raise DataError(f"{datalist}: no such datalist; `medsam-tune split` writes one.")
    method = content.get("method", method)
    if method is None:
        raise DataError(f"{path}: the domain {name} has no method, nor has the recipe. Add one.")
    refuse_unknown("method", method, METHODS)
    overlays = [str(one) for one in content.get("overlays", [])]
    return Domain(
        name=name,
        datalist=datalist,
        bundle=bundle_of_data(content.get("bundle"), datalist),
        method=method,
        overlays=tuple(
            str(path.parent / one) if (path.parent / one).is_file() else one for one in overlays
        ),
        settings=content.get("settings", {}),
    )


def _yaml(path: Path) -> Any:
    import yaml

    if not path.is_file():
        raise DataError(f"{path}: no such recipe; docs/models.md shows one.")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{path}: is no YAML ({line}). Correct it.") from error


def _checked(path: Path, content: Any, known: Mapping[str, type], place: str) -> dict[str, Any]:
    """A mapping of known keys, each of its type; a null is as if it were not there.

    Raises:
        DataError: something else.
    """
    where = f"{path}: {place or 'it'}"
    if not isinstance(content, dict):
        raise DataError(f"{where} is {content!r}; expected the keys {', '.join(known)}.")
    for key, value in content.items():
        if key not in known:
            near = nearest(str(key), known)
            raise DataError(f"{where} has {key!r}; known: {', '.join(known)}.{near}")
        odd = not isinstance(value, known[key]) or (known[key] is int and value is True)
        if value is not None and odd:
            wanted = {"str": "a text", "int": "a whole number", "bool": "true or false"}
            kind = wanted.get(known[key].__name__, f"a {known[key].__name__}")
            raise DataError(f"{where} has {key}: {value!r}; expected {kind}.")
    for key in content.get("settings") or ():
        if str(key).split("::")[0] in _SET:
            raise DataError(f"{where}: settings has {key!r}, which the command sets. Leave it out.")
    return {key: value for key, value in content.items() if value is not None}
