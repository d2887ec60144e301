"""Several processes: how they start, and how weights are sharded among them.

`fastvlm train RECIPE --processes 2` starts copies of itself; `accelerate launch` and `torchrun` work as well, on one machine or more.
On CPUs one process a core is faster than one process with a thread a core: a training step is thousands of short operators.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastvlm.model.decoder import DecoderLayer
from fastvlm.model.fastvithd import AttentionBlock, PatchEmbed, RepMixerBlock

SHARDED_UNITS = (DecoderLayer, RepMixerBlock, AttentionBlock, PatchEmbed)


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `fastvlm ARGUMENTS` in so many processes and return the worst exit status."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "fastvlm", *arguments]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ}
    return subprocess.run(command, env=environment, check=False).returncode


def is_worker() -> bool:
    """Started by `launch`, `torchrun` or `accelerate launch`."""
    return "RANK" in os.environ


def shard(module: nn.Module) -> None:
    """Give each process its part of the weights, gradients and moments of every block (FSDP2), in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (torch.distributed.get_world_size(),))
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP takes no other
    for child in list(module.modules()):
        # What is left, the embedding of a tied head above all, is gathered with the root: it is used outside its own forward pass.
        if isinstance(child, SHARDED_UNITS):
            fully_shard(child, mesh=mesh)
    fully_shard(module, mesh=mesh)


def rank_and_processes() -> tuple[int, int]:
    """The number of this process, and of how many."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes; itself when there is one."""
    if rank_and_processes()[1] > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def max_over_processes(value: int) -> int:
    """The largest of all processes' values."""
    if rank_and_processes()[1] > 1:
        tensor = torch.tensor(value)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return int(tensor)
    return value


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` went over it."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())
