"""Several tuned models on one frozen base, whose weights are in memory once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import Tensor, nn

from medsam_tune.errors import DataError
from medsam_tune.methods import apply_method
from medsam_tune.methods.lora import adapted_layers
from medsam_tune.methods.tuned import (
    load_tuned,
    load_tuned_tensors,
    read_header,
    tuned_tensors,
)
from medsam_tune.prompts import Prompts
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import Masks, PromptableSam

# peft's other initialisations of LoRA change the base's weights.
_KEEPS_BASE = (True, False, "gaussian", "orthogonal")
_NOT_SUMMED = ("use_dora", "lora_bias")


def not_summed(options: Mapping[str, Any]) -> str | None:
    """The first field of a LoRA that keeps it out of a sum of LoRAs, see `Domains.combine`.

    Args:
        options: options of the method "lora", with or without a `config`.
    """
    config = options.get("config") or options
    return next((name for name in _NOT_SUMMED if config.get(name)), None)


def load_elsewhere(
    tuned: str | Path | None, like: str | Path, checkpoint: str | Path | None = None
) -> PromptableSam:
    """A tuned model for the images of another domain, whose labels it does not know.

    Args:
        tuned: tuned file; None for the untouched base of `like`.
        like: tuned file of the domain whose images it will see.
        checkpoint: checkpoint of the base of `tuned`.

    Returns:
        the model in evaluation mode, without the learned tokens of its labels: it takes prompts of
        any label.

    Raises:
        DataError: its base takes other images; or see `load_tuned`.
    """
    base = read_header(like).base
    if tuned is None:
        return build_sam(
            base.name, checkpoint, base.image_size, base.in_channels, base.normalisation
        ).eval()
    model = load_tuned(tuned, checkpoint=checkpoint)
    for field in ("image_size", "in_channels", "normalisation"):
        own, other = getattr(model.base, field), getattr(base, field)
        if own != other:
            raise DataError(
                f"{tuned}: its base has {field} {own}, that of {like} has {other}; expected models "
                "that take the same images."
            )
    if model.classes:
        model.learned = None
    return model


class Domains(nn.Module):
    """Named adapters, LoRAs, token sets or decoders on one frozen base.

    Every domain is a whole `PromptableSam` (`domains["ct"]`). Its untuned weights are the base's
    own tensors, so it needs memory for its tuned tensors only. It cannot change the base or another
    domain.

    Args:
        base: untuned base; it gets frozen.

    Example:
        >>> domains = Domains(build_sam("vit_b", "checkpoints/sam_vit_b_01ec64.pth"))
        >>> domains.add("ct", "runs/ct/tuned.safetensors")
        >>> domains.add("mr", "runs/mr/tuned.safetensors")
        >>> domains(image, ["ct", "mr"], boxes)  # one batch, each image by its own domain
    """

    def __init__(self, base: PromptableSam) -> None:
        super().__init__()
        if base.tuning is not None:
            raise ValueError(
                f"the base is tuned by {base.tuning.method!r}; give an untuned one, and add the "
                "tuned file as a domain."
            )
        self.base = base.requires_grad_(False)
        self._models = nn.ModuleDict()

    def __getitem__(self, name: str) -> PromptableSam:
        """The model of a domain.

        Raises:
            ValueError: an unknown domain; names the known ones.
        """
        if name not in self._models:
            raise ValueError(
                f"domain {name!r} is not there; domains: {', '.join(self) or 'none'}. Add it first."
            )
        return self._models[name]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def create(self, name: str, method: str, **options: Any) -> PromptableSam:
        """A new domain, ready to train; the arguments are those of `apply_method`.

        Raises:
            ValueError: the name is taken, or LoRA's initialisation would change the base.
        """
        return self._keep(name, self._tuned(method, options))

    def add(self, name: str, tuned: str | Path) -> PromptableSam:
        """A new domain from a tuned file.

        Raises:
            ValueError: the name is taken, or the file is damaged or of another base.
            FileNotFoundError: the file does not exist.
        """
        return self._keep(name, load_tuned(tuned, self.base, apply=self._tuned))

    def remove(self, name: str) -> None:
        """Remove a domain; the others and the base do not change."""
        self._models.pop(name) if name in self else self[name]

    def combine(
        self, name: str, weights: Mapping[str, float], combination_type: Any = "cat", **options: Any
    ) -> PromptableSam:
        """A new domain that is a weighted sum of LoRA domains.

        The LoRAs may have other ranks, layers and scales (`alpha`, `use_rslora`). The scales are
        folded into the weights of the sum, so that its own is 1.

        Args:
            name: name of the new domain.
            weights: domain -> its weight.
            combination_type: type in peft's `add_weighted_adapter`; "cat" gives the exact sum and
                adds the ranks; "svd" and others keep the rank.
            options: other arguments of `add_weighted_adapter`, e.g. `svd_rank`.

        Raises:
            ValueError: a domain that is not LoRA alone, one with `use_dora` or `lora_bias`, or an
                error of peft.
        """
        scratch = self._clone()
        merged = "_combined"
        for part in weights:
            model = self[part]
            config = getattr(model, "peft_config", {}).get("default")
            tensors = tuned_tensors(model)
            if type(config) is not LoraConfig or not all(".lora_" in key for key in tensors):
                raise ValueError(
                    f"domain {part!r} is not LoRA alone; only LoRAs without a trained decoder or "
                    "tokens can be combined."
                )
            if field := not_summed(config.to_dict()):
                raise ValueError(
                    f"domain {part!r} is a LoRA with {field}, of which peft makes no weighted sum; "
                    f"only LoRAs without {field} can be combined."
                )
            config = replace(
                config,
                target_modules=adapted_layers(model),  # a set, by its __post_init__
                exclude_modules=None,
                layers_to_transform=None,
                init_lora_weights=True,
            )
            with warnings.catch_warnings():  # more than one config is intended here
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                tuner = LoraModel(scratch, copy.copy(config), part)
            # The part has its scales by now, which peft folds into the sum; that takes the other
            # fields of the first part, and its scale is 1, which its larger rank must not change.
            tuner.peft_config[part] = replace(config, use_rslora=False)
            own = scratch.state_dict()  # shares memory with the parameters
            for key, value in tensors.items():
                own[key.replace(".default.", f".{part}.")].copy_(value)
        tuner.add_weighted_adapter(
            list(weights), list(weights.values()), merged, combination_type, **options
        )
        mixed = {
            key.replace(f".{merged}.", ".default."): value
            for key, value in scratch.state_dict().items()
            if f".{merged}." in key
        }
        model = self._tuned("lora", {"config": tuner.peft_config[merged].to_dict()})
        load_tuned_tensors(model, mixed, f"domain {name!r}")
        return self._keep(name, model)

    def forward(
        self,
        image: Tensor,
        domain: str | Sequence[str],
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        masks: Tensor | None = None,
        classes: Tensor | None = None,
        return_quality: bool = False,
    ) -> Tensor | Masks:
        """Segment each image by the model of its domain, see `PromptableSam.forward`.

        Args:
            image: (B, C, S, S) float in [0, 1], model frame.
            domain: B names, or one for all images.
            boxes: (B, P, 4) float, see `Prompts`.
            points: (B, P, N, 2) float, see `Prompts`.
            point_labels: (B, P, N) int, see `Prompts`.
            masks: (B, P, 4G, 4G) float, see `Prompts`.
            classes: (B, P) int64, see `Prompts`; the domains of a batch then all have classes.
            return_quality: give quality and presence as well.

        Raises:
            ValueError: an unknown domain, or not one name for each image.
        """
        names = [domain] * len(image) if isinstance(domain, str) else list(domain)
        if len(names) != len(image):
            raise ValueError(f"{len(names)} domains for {len(image)} images; expected one each.")
        models = {name: self[name] for name in dict.fromkeys(names)}
        rows = [torch.tensor([i for i, n in enumerate(names) if n == name]) for name in models]
        prompts = Prompts(boxes, points, point_labels, masks, classes)
        parts = [
            model(image[here.to(image.device)], *prompts.rows(here), return_quality=True)
            for model, here in zip(models.values(), rows, strict=True)
        ]
        back = torch.cat(rows).argsort().to(image.device)
        logits, quality = (torch.cat(x)[back] for x in list(zip(*parts, strict=True))[:2])
        presences = [part.presence for part in parts]
        known = [one for one in presences if one is not None]
        presence = torch.cat(known)[back] if len(known) == len(parts) else None
        return Masks(logits, quality, presence) if return_quality else logits

    def _keep(self, name: str, model: PromptableSam) -> PromptableSam:
        if name in self:
            raise ValueError(f"domain {name!r} is there already; remove it first.")
        self._models[name] = model
        return model

    def _clone(self) -> PromptableSam:
        """A copy of the base's structure around the same tensors."""
        tensors = [*self.base.parameters(), *self.base.buffers()]
        return copy.deepcopy(self.base, {id(tensor): tensor for tensor in tensors})

    def _tuned(self, method: str, options: Mapping[str, Any]) -> PromptableSam:
        """A clone with a method applied; base tensors that it trains are copied."""
        config = options.get("config") or options
        start = (
            config.get("init_lora_weights", True)
            if isinstance(config, Mapping)
            else (getattr(config, "init_lora_weights", True))
        )
        if start not in _KEEPS_BASE:
            raise ValueError(
                f"init_lora_weights={start!r} rewrites the base's weights, which the domains "
                f"share; expected one of {_KEEPS_BASE}."
            )
        model = apply_method(self._clone(), method, **options)
        shared = {id(p) for p in self.base.parameters()}
        for key, parameter in list(model.named_parameters()):
            if parameter.requires_grad and id(parameter) in shared:
                parent, _, child = key.rpartition(".")
                own = nn.Parameter(parameter.detach().clone())
                model.get_submodule(parent).register_parameter(child, own)
        self.base.requires_grad_(False)
        return model.train(self.base.training)
