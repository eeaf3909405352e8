"""Ranks: the processes of one training or evaluation on several GPUs, as `torchrun` starts them.

One process alone is rank 0 of 1: every function works there as well, and waits for nobody.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

FOLLOWED = 1
"""Exit code of a process that ended because another has."""

_WORDS: list[Any] = []  # the group of processes that the ranks speak in, on the CPU
_FAILED: list[int] = []  # the exit code of this process, once it has failed
_SAID = "MEDSAM_TUNE_SAID"  # a folder with a file for each line that a process has said
_PATIENCE = timedelta(days=7)  # for the largest share; who has ended is noticed at once


def count() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, 0 to `count() - 1`."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is rank 0, which writes all files and speaks to the user."""
    return rank() == 0


def my_part(items: Sequence[T]) -> tuple[T, ...]:
    """This process's part of items that are done once: every `count()`-th."""
    return tuple(items[rank() :: count()])


def device() -> torch.device:
    """The GPU of this process, or the CPU where torch sees no GPU.

    Raises:
        ValueError: the machine has fewer GPUs than it has processes.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= there:
        raise ValueError(
            f"process {local + 1} of this machine has no GPU: torch sees {there}; start as many "
            "processes as there are GPUs (--gpus, or --nproc-per-node)."
        )
    return torch.device("cuda", local)


def share_cores() -> None:
    """Let torch use this process's part of the cores of its machine, as it uses all of them alone.

    An OMP_NUM_THREADS of the user counts. Of torchrun, 1 is none: it sets that itself.
    """
    import torch

    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None or (threads == "1" and local > 1 and _SAID not in os.environ):
        torch.set_num_threads(max(1, _cores() // local))


def _cores() -> int:
    if sys.platform == "linux":  # those that a scheduler gave to this process
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def join() -> None:
    """Meet the other processes, before anything else is done; one process alone has nobody to meet.

    Raises:
        RuntimeError: some of them do not come.
    """
    if count() == 1 or _WORDS:
        return
    import torch.distributed as dist

    atexit.register(_end_at_once)
    share_cores()
    place = device()
    if place.type == "cuda":
        import torch

        torch.cuda.set_device(place)
        dist.init_process_group("nccl", device_id=place)
        _WORDS.append(dist.new_group(backend="gloo", timeout=_PATIENCE))
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)
        _WORDS.append(dist.group.WORLD)


def leave() -> None:
    """Part from the others, at the end of a run, when all have heard what was said."""
    if _WORDS:
        import torch.distributed as dist

        with suppress(SystemExit):  # who has ended by now has done its work
            wait()
        _FAILED.clear()
        _WORDS.clear()
        dist.destroy_process_group()


def wait() -> None:
    """Wait until all processes are here."""
    largest(0)


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank.

    Args:
        value: what this process has; it can be pickled.

    Raises:
        SystemExit: another process has ended, and said why; so do this and the next.
    """
    if count() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    with _ending_with_others():
        dist.all_gather_object(found, value, _WORDS[0])
    return found


def largest(value: int) -> int:
    """The largest of the values of all processes."""
    return int(_reduced(value, "MAX"))


def mean(value: float) -> float:
    """The mean of the values of all processes."""
    return float(_reduced(value, "SUM")) / count()


def _reduced(value: float, way: str) -> float:
    if count() == 1:
        return value
    import torch
    import torch.distributed as dist

    found = torch.tensor(value, dtype=torch.float64)
    with _ending_with_others():
        dist.all_reduce(found, getattr(dist.ReduceOp, way), _WORDS[0])
    return found.item()


@contextmanager
def _ending_with_others() -> Iterator[None]:
    """End this process where another has ended, whose connection is then closed."""
    try:
        yield
    except RuntimeError as error:
        failed(FOLLOWED)
        raise SystemExit(FOLLOWED) from error


def failed(code: int) -> None:
    """Let this process, if it is one of several, end with a code as soon as Python exits.

    Else Python takes itself down before, in which threads of torch abort it at times: such a thread
    has still to free a tensor of the words that were broken off.
    """
    _FAILED[:] = [code]


def _end_at_once() -> None:
    if _FAILED:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_FAILED[0])


def launch(processes: int, words: Sequence[str]) -> None:
    """Start processes on this machine as `torchrun --standalone` does, and wait for their end.

    Args:
        processes: number of them, each with its GPU.
        words: what the Python interpreter runs, such as `["-m", "monai.bundle", "run", ...]`.

    Raises:
        SystemExit: one of them failed, which ends the others; the code is its own, or 128 plus the
            number of its signal, which is said.
    """
    import signal
    import tempfile

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A rank says itself what went wrong.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="medsam_tune",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="medsam_tune_") as said:
            os.environ[_SAID] = said
            elastic_launch(config, sys.executable)(*words)
    except ChildFailedError as error:
        # Who ended because another has, or was ended for it, may be noticed first.
        followed = {FOLLOWED: 1, -signal.SIGTERM: 2}
        number, failure = min(
            error.failures.items(),
            key=lambda one: (followed.get(one[1].exitcode, 0), one[1].timestamp),
        )
        code = failure.exitcode
        if code < 0:
            name = signal.Signals(-code).name
            print(
                f"medsam-tune: process {number + 1} of {processes} was ended by {name}, and the "
                "others with it; train and predict go on with --resume.",
                file=sys.stderr,
            )
        raise SystemExit(code if code > 0 else 128 - code) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None


def first_to_say(line: str) -> bool:
    """Whether no other process that `launch` started has said this line."""
    if _SAID not in os.environ:
        return True
    mark = Path(os.environ[_SAID], sha256(line.encode()).hexdigest())
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # a full disk, which the line may be about
        pass
    return True


def parallel(network: nn.Module, device: torch.device) -> nn.Module | DistributedDataParallel:
    """The network as the trainer calls it: gradients are the means over all processes.

    Args:
        network: network on its device; it keeps the weights, so save and validate this one.
        device: device of this process.
    """
    if count() == 1:
        return network
    from torch.nn.parallel import DistributedDataParallel

    # A batch may lack points, say; then the prompt encoder's weights for them have no gradient.
    trained = [name for name, one in network.named_parameters() if one.requires_grad]
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=any(name.startswith("prompt_encoder") for name in trained),
    )


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part, see `training.sharding`; all have to ask."""
    return tensor.full_tensor() if _is_shared(tensor) else tensor


def kept(tensor: Tensor) -> Tensor | None:
    """A whole tensor on the CPU, for the first process, which writes it; None for the others."""
    found = whole(tensor)
    return found.cpu() if is_main() else None


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; it may be empty."""
    return tensor.to_local() if _is_shared(tensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, which all processes have, as `other` is shared out."""
    if not _is_shared(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(other.device)
    return distribute_tensor(moved, other.device_mesh, other.placements, src_data_rank=None)


def _is_shared(tensor: Tensor) -> TypeGuard[DTensor]:
    if count() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


class Share:
    """Sampler of this process's share of a data set: every `count()`-th item, in order.

    All shares are equally long; the last items of some may be items of others once more.

    Args:
        length: length of the data set.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return -(-self.length // count())

    def __iter__(self) -> Iterator[int]:
        return ((rank() + count() * number) % self.length for number in range(len(self)))
