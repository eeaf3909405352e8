"""Sharding: several GPUs share the weights, gradients and optimizer states of one training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from medsam_tune import ranks
from medsam_tune.methods.blocks import encoder_blocks
from medsam_tune.sam.model import PromptableSam


def shard(network: PromptableSam, device: torch.device) -> PromptableSam:
    """A copy of a network for the trainer, of whose parameters each rank holds a part (FSDP2).

    Each encoder block is gathered when it runs, on a GPU in bfloat16; gradients are summed in
    float32, and are the means over all processes.

    Args:
        network: fully tuned network, which stays whole; of all ranks, the first one's counts.
        device: device of this process.

    Raises:
        ValueError: another method, whose few tuned weights are not worth it; one process alone.
    """
    method = network.tuning.method if network.tuning else None
    if method != "full":
        raise ValueError(
            f"fsdp.yaml is for the method full, and this is {method}: its gradients and optimizer "
            "states are small. Lay multi_gpu.yaml over it instead (--gpus without --shard)."
        )
    if ranks.count() == 1:
        raise ValueError("fsdp.yaml needs several processes; start them by torchrun, or --gpus.")
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    ranks.wait()  # one that refuses the run has ended, and the others with it
    # No loss changes logits in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    learner = copy.deepcopy(network).to(device)
    for tensor in (*learner.parameters(), *learner.buffers()):
        dist.broadcast(tensor.detach(), 0)
    mesh = init_device_mesh(device.type, (ranks.count(),))
    # Autocast has the inputs of each layer; so what blocks hand on stays float32.
    dtype = torch.bfloat16 if device.type == "cuda" else None
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for block in encoder_blocks(learner).values():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(learner, mesh=mesh)
    return learner


class GatherWeights:
    """Handler of a validator: its network has the weights of a sharded one, on the device.

    Args:
        learner: network from `shard`.
        network: whole network that is validated; between validations it is on the CPU.
        device: device of this process.
    """

    def __init__(self, learner: nn.Module, network: nn.Module, device: torch.device) -> None:
        self.learner = learner
        self.network = network
        self.device = device

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.STARTED, lambda _: self._gather())
        engine.add_event_handler(Events.COMPLETED, lambda _: self.network.to("cpu"))

    def _gather(self) -> None:
        self.network.to(self.device)
        pairs = zip(self.network.parameters(), self.learner.parameters(), strict=True)
        with torch.no_grad():
            for own, shared in pairs:
                own.copy_(ranks.whole(shared))


class OptimizerState:
    """State of an optimizer as checkpoints have it, whole even where its tensors are sharded."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return the state, see `ranks.kept`; all ranks have to ask."""
        state = self.optimizer.state_dict()
        kept = {
            number: {
                key: ranks.kept(value) if isinstance(value, Tensor) else value
                for key, value in one.items()
            }
            for number, one in state["state"].items()
        }
        return {**state, "state": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a whole state; each rank keeps its part."""
        groups = self.optimizer.param_groups
        parameters = [one for group in groups for one in group["params"]]
        kept = {
            number: {
                key: ranks.like(value, parameters[number])
                if isinstance(value, Tensor) and value.dim()
                else value
                for key, value in one.items()
            }
            for number, one in state["state"].items()
        }
        self.optimizer.load_state_dict({**state, "state": kept})
