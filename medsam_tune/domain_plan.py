"""What `multi_domain` tunes: domains, their settings, and what of them a folder remembers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from medsam_tune.bundle import config_content, merged, training_configs
from medsam_tune.errors import DataError, listed, warn
from medsam_tune.files import FORMAT, file_hash, read_json
from medsam_tune.inference.domain_runs import DOMAINS_FORMAT
from medsam_tune.methods import METHODS, apply_method
from medsam_tune.methods.domains import not_summed
from medsam_tune.methods.options import refuse_odd_options
from medsam_tune.tasks import SETTINGS

FULL = "full"
"""Method whose forgetting is measured."""

# Settings of a domain's own method, which another method has not, or needs otherwise.
_OF_METHOD = ("network_def", "lr")
_FORGETTING = (
    " Forgetting tunes by full, with the overlays of a domain; of its settings it leaves out "
    "network_def and lr."
)


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

    def settings_of(self, domain: Domain, method: str) -> dict[str, Any]:
        """The settings of a domain's training by a method.

        Those of its own method, the options of `network_def` and the learning rate, are left out
        for another one.
        """
        given = {**self.settings, **domain.settings}
        own = () if method == domain.method else _OF_METHOD
        return {key: value for key, value in given.items() if key.split("::")[0] not in own}

    def base(self, checkpoint: Path | None) -> dict[str, Any]:
        """The settings of the base, with weights of it."""
        given = {"model": self.model, "checkpoint": checkpoint, "image_size": self.image_size}
        return {key: value for key, value in given.items() if value is not None}

    def configs(self, domain: Domain, method: str, class_agnostic: bool) -> list[str]:
        """The configs of a domain's training by a method.

        Raises:
            ValueError: an overlay of another method, or an option that the method does not have.
        """
        base = self.base(self.checkpoint)
        try:
            names = training_configs(
                domain.bundle, method, domain.overlays, class_agnostic=class_agnostic, **base
            )
            refuse_odd_options(method, METHODS[method], self._options(domain, method, names))
        except ValueError as error:
            more = "" if method == domain.method else _FORGETTING
            raise ValueError(f"domain {domain.name}, tuned by {method}: {error}{more}") from error
        return names

    def refuse_odd(self) -> None:
        """Refuse, before anything starts, what would fail later; say what is left out of the mean.

        Raises:
            ValueError: see `configs`.
        """
        for one in self.domains:
            names = self.configs(one, one.method, self.class_agnostic)
            options = self._options(one, one.method, names)
            if self.class_agnostic and one.method == "lora" and (odd := not_summed(options)):
                warn(
                    f"domain {one.name}: its LoRA has {odd}, of which there is no weighted sum; it "
                    "is tuned and judged, and left out of the mean of the LoRAs (combined)."
                )
        for name in self.forgetting or ():
            self.configs(self.domain(name), FULL, True)

    def _options(self, domain: Domain, method: str, names: Sequence[str]) -> dict[str, Any]:
        """Options of a method as configs and settings say them; what they compute is left out."""
        contents = [config_content(domain.bundle, name) for name in names]
        found = merged([*contents, self.settings_of(domain, method)])["network_def"]
        if not isinstance(found, dict) or found.get("_target_") != "medsam_tune.apply_method":
            return {}
        others = {"_target_", *signature(apply_method).parameters}
        return {
            key: value
            for key, value in found.items()
            if key not in others and not str(value).startswith(("$", "@"))
        }


def described(plan: Plan) -> dict[str, Any]:
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
            **{f"content of {Path(name).name}": _hash(one.bundle, name) for name in one.overlays},
        }
        for one in plan.domains
    }
    for name in now.keys() & before.keys():
        changed = [key for key, one in now[name].items() if before[name].get(key) != one]
        if changed:
            raise DataError(
                f"{plan.output}: its domain {name} has another {listed(changed)} now, and nothing "
                "is trained again. Give the same again, name the domain otherwise, or choose "
                "another --output."
            )
    return {**before, **now}


def said(plan: Plan) -> dict[str, Any]:
    """What all domains of a folder have in common."""
    return {
        FORMAT: DOMAINS_FORMAT,
        "model": plan.model,
        "checkpoint": None if plan.checkpoint is None else str(plan.checkpoint.absolute()),
        "image_size": plan.image_size,
        "class_agnostic": plan.class_agnostic,
        "settings": {key: str(value) for key, value in sorted(plan.settings.items())},
    }


def _hash(bundle: str, overlay: str) -> str:
    """The sha256 of what an overlay says, whatever its comments."""
    content = json.dumps(config_content(bundle, overlay), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()
