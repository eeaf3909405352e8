"""MONAI's engines with `amp` on any device, and what `amp` means: bfloat16 autocast.

MONAI's own engines have autocast on a GPU only, and say `amp=True` on a CPU without effect.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import monai.engines
import torch
from torch import nn

from medsam_tune.settings import check


def has_bfloat16() -> bool:
    """Whether this processor multiplies matrices in bfloat16; others take longer than in float32.

    On x86 it has AVX512-BF16, as those with AMX do, on ARM BF16.
    """
    known: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(torch.cpu._is_avx512_bf16_supported() or known.get("bf16"))


def check_amp(device: str | torch.device, amp: bool) -> None:
    """Refuse `amp` that is no switch, or a processor that has no bfloat16; recipes call it.

    Raises:
        ValueError: names the setting, and what to do.
    """
    check(amp=amp)
    if amp and torch.device(device).type == "cpu" and not has_bfloat16():
        raise ValueError(
            "amp is true, but this processor has no bfloat16 (AVX512-BF16, AMX, or BF16 of ARM) "
            "and would take longer than in float32; leave amp out, or set it to false."
        )


def check_compile(device: str | torch.device) -> None:
    """Refuse to compile where there is no compiler, before anything is written; recipes call it.

    Raises:
        ValueError: names the compilers that torch looks for, and what to do.
    """
    gpu = torch.device(device).type != "cpu"
    named = os.environ.get("CC" if gpu else "CXX")
    usual = ("gcc", "clang") if gpu else ("clang++",) if sys.platform == "darwin" else ("g++",)
    wanted = shlex.split(named)[:1] if named else usual
    if sys.platform != "win32" and not any(map(shutil.which, wanted)):
        raise ValueError(
            f"compile is true, but there is no compiler here ({' or '.join(wanted)}); install one, "
            f"or name yours by the variable {'CC' if gpu else 'CXX'}, or leave compile out."
        )


def autocast(device: str | torch.device, amp: bool | None = None) -> torch.autocast:
    """The context of a forward pass.

    Args:
        device: device of the model.
        amp: compute in bfloat16; None: on a GPU.

    Raises:
        ValueError: see `check_amp`.
    """
    device = torch.device(device)
    amp = device.type == "cuda" if amp is None else amp
    check_amp(device, amp)
    return torch.autocast(device.type, torch.bfloat16, enabled=amp)


class SupervisedTrainer(monai.engines.SupervisedTrainer):
    """MONAI's trainer, whose `amp` works on a CPU too: forward pass and loss are in bfloat16.

    Args:
        device: device of the model.
        amp: autocast; on a GPU by MONAI, of the type in its `amp_kwargs`.
        options: other arguments of MONAI's trainer.

    Raises:
        ValueError: see `check_amp`.
    """

    def __init__(self, *, device: str | torch.device, amp: bool = False, **options: Any) -> None:
        ours = _is_ours(device, amp)
        super().__init__(device=torch.device(device), amp=amp and not ours, **options)
        if ours:
            self.inferer: Any = _within(device, self.inferer)
            self.loss_function: Any = _within(device, self.loss_function)


class SupervisedEvaluator(monai.engines.SupervisedEvaluator):
    """MONAI's evaluator, whose `amp` works on a CPU too.

    Args:
        device: device of the model.
        amp: autocast; on a GPU by MONAI, of the type in its `amp_kwargs`.
        options: other arguments of MONAI's evaluator.

    Attributes:
        half: whether it is autocast, by whom ever.

    Raises:
        ValueError: see `check_amp`.
    """

    def __init__(self, *, device: str | torch.device, amp: bool = False, **options: Any) -> None:
        ours = _is_ours(device, amp)
        super().__init__(device=torch.device(device), amp=amp and not ours, **options)
        self.half = amp
        if ours:
            mode = self.mode

            @contextmanager
            def both(*networks: nn.Module) -> Iterator[list[nn.Module]]:
                with mode(*networks) as found, autocast(device, True):
                    yield found

            self.mode: Any = both  # MONAI has it around the forward pass, and around nothing else


def _is_ours(device: str | torch.device, amp: bool) -> bool:
    """Whether autocast is wanted where MONAI has none."""
    check_amp(device, amp)
    return amp and torch.device(device).type != "cuda"


def _within(device: str | torch.device, called: Callable[..., Any]) -> Callable[..., Any]:
    """An inferer or a loss under autocast."""

    def within(*given: Any, **options: Any) -> Any:
        with autocast(device, True):
            return called(*given, **options)

    return within
