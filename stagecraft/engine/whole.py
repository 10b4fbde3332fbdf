"""The whole model of all ranks <-> the shards of each: what the canonical checkpoint holds, whatever the parallel layout.

Which part of which tensor a rank holds is what megatron-core's distributed checkpoints go by (`sharded_state_dict`), so that
exporting and checkpointing cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica
from torch import Tensor, nn

from stagecraft.checkpoint.convert import Stack
from stagecraft.model.config import Architecture

# ssm/mamba_mixer.py:1412 cuts these into parts before it shards them: each part lies on every tensor-parallel rank.
_IN_PROJ, _CONV = ("z", "x", "B", "C", "dt"), ("x", "B", "C")
_PARTS = {"mixer.in_proj.weight": _IN_PROJ, "mixer.conv1d.weight": _CONV, "mixer.conv1d.bias": _CONV}
# key -> name in the whole state: the convolution's parameters (:1370), and the experts' of Transformer Engine (moe/experts.py:952)
_NAMES = {"mixer.conv1d.weight": "mixer.conv1d_weight", "mixer.conv1d.bias": "mixer.conv1d_bias",
          "mlp.experts.experts.linear_fc1.weight": "mlp.experts.up", "mlp.experts.experts.linear_fc2.weight": "mlp.experts.down"}


def gather(module: nn.Module) -> dict[str, Tensor]:
    """Megatron's whole state dict in host memory on rank 0, nothing on the others. Every rank calls it.

    One tensor is under way at a time; rank 0 needs room for all of them.
    """
    mine = [shard for shard in _shards(module) if is_main_replica(shard.replica_id)]
    described = [(shard.key, shard.global_shape, shard.global_offset, shard.local_shape, shard.dtype) for shard in mine]
    plans: list[list[tuple]] = [[]] * dist.get_world_size()
    dist.all_gather_object(plans, described)
    if dist.get_rank() != 0:
        for shard in mine:
            _pass(dist.isend, shard.data.detach().contiguous(), 0)
        return {}
    whole: dict[str, Tensor] = {}
    for owner, plan in enumerate(plans):
        for index, (key, shape, offset, size, dtype) in enumerate(plan):
            if owner == 0:
                part = mine[index].data.detach()
            else:
                part = torch.empty(size, dtype=dtype, device=torch.cuda.current_device())
                _pass(dist.irecv, part, owner)
            if key not in whole:
                whole[key] = torch.empty(shape, dtype=dtype)
            whole[key][_place(offset, size)] = part.cpu()
    return _joined(whole)


def _pass(operation: Callable, tensor: Tensor, rank: int) -> None:
    """Send or receive. As a batch it goes over the communicator that all ranks share; NCCL would make one more for every pair."""
    for request in dist.batch_isend_irecv([dist.P2POp(operation, tensor, rank)]):
        request.wait()


@torch.no_grad()
def scatter(module: nn.Module, architecture: Architecture, state: Mapping[str, Tensor | Stack]) -> None:
    """Take this rank's shards of a whole Megatron state dict.

    Raises:
        KeyError: a tensor of the module is missing.
    """
    for shard in _shards(module):
        name, part = _name_and_part(shard.key)
        tensor = state[name]
        if part:
            tensor = dict(zip(_parts_of(shard.key), tensor.split(_sizes(architecture, _parts_of(shard.key)))))[part]
        shard.data.copy_(tensor[_place(shard.global_offset, shard.local_shape)].view_as(shard.data))


def _shards(module: nn.Module) -> Iterator[ShardedTensor]:
    sharded = module.sharded_state_dict(prefix="")
    apply_factories(sharded)
    for value in nested_values(sharded):
        if isinstance(value, ShardedTensor):
            yield value


def _place(offset: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    """Of a shard in the whole; dimensions that it lacks are in front, and it is one of their elements."""
    lacking = len(offset) - len(size)
    return tuple(slice(start, start + length) for start, length in zip(offset, (1,) * lacking + tuple(size)))


def _parts_of(key: str) -> tuple[str, ...]:
    return next((parts for suffix, parts in _PARTS.items() if key.rpartition(".")[0].endswith(suffix)), ())


def _name_and_part(key: str) -> tuple[str, str]:
    """The parameter that a shard's key stands for, and the part of it ("" for all)."""
    base, _, last = key.rpartition(".")
    name, part = (base, last) if last in _parts_of(key) else (key, "")
    for suffix, renamed in _NAMES.items():
        if name.endswith(suffix):
            name = name.removesuffix(suffix) + renamed
    return name, part


def _sizes(a: Architecture, parts: tuple[str, ...]) -> list[int]:
    inner, group = a.mamba_num_heads * a.mamba_head_dim, a.n_groups * a.ssm_state_size
    size = {"z": inner, "x": inner, "B": group, "C": group, "dt": a.mamba_num_heads}
    return [size[part] for part in parts]


def _joined(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters by their own names, their parts put together."""
    parts: dict[str, dict[str, Tensor]] = {}
    joined: dict[str, Tensor] = {}
    for key, tensor in whole.items():
        name, part = _name_and_part(key)
        if part:
            parts.setdefault(name, {})[part] = tensor
        else:
            joined[name] = tensor
    for name, found in parts.items():
        order = _IN_PROJ if "dt" in found else _CONV
        joined[name] = torch.cat([found[part] for part in order])
    return joined
