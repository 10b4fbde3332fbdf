"""A sequence that grows gets the blocks that upstream's managers give it, whichever way is taken."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, MambaSpec
from vllm.v1.request import Request

from stagecraft.inference import vllm_cpu

LONGEST, BLOCKS = 96, 24


def manager(drafts: int, mamba_block: int, caching: bool) -> KVCacheManager:
    groups = [KVCacheGroupSpec(["attention"], FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=32, dtype=torch.float32)),
              KVCacheGroupSpec(["mamba"], MambaSpec(block_size=mamba_block, shapes=((4, 4),), dtypes=(torch.float32,),
                                                    num_speculative_blocks=drafts))]
    return KVCacheManager(KVCacheConfig(BLOCKS, [], groups), LONGEST, scheduler_block_size=LONGEST, hash_block_size=16,
                          enable_caching=caching)


@settings(max_examples=60, deadline=None)
@example([(0, 1)] * 11 + [(0, 2)] + [(0, 9)] * 4 + [(0, 1)], 0, 48)  # a state that has moved on to its second block
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=40), st.sampled_from([0, 2]), st.sampled_from([48, LONGEST]))
def test_blocks_are_those_that_upstream_gives(steps, drafts, mamba_block):
    """Four sequences in any order, each by as many tokens at a time, until the pool is empty or a sequence at its end."""
    vllm_cpu.register()
    ours, theirs = manager(drafts, mamba_block, False), manager(drafts, mamba_block, False)
    requests = [Request(str(number), [5] * (number + 1), SamplingParams(max_tokens=LONGEST), None) for number in range(4)]
    short = []
    for number, count in steps:
        request = requests[number]
        if request.num_computed_tokens + count > LONGEST:
            continue
        given_ = ours.allocate_slots(request, count, num_lookahead_tokens=drafts)
        # Named, what is the default anyway: no shortcut.
        expected = theirs.allocate_slots(request, count, num_lookahead_tokens=drafts, full_sequence_must_fit=False)
        assert (given_ is None) == (expected is None)
        if given_ is not None:
            assert given_.get_block_ids() == expected.get_block_ids()
            request.num_computed_tokens += count
            short.append(given_ is ours.empty_kv_cache_blocks)
        assert ours.get_block_ids(request.request_id) == theirs.get_block_ids(request.request_id)
        assert ours.block_pool.get_num_free_blocks() == theirs.block_pool.get_num_free_blocks()
    assert len(short) < 6 or any(short)


def test_kept_blocks_go_upstreams_way(monkeypatch):
    """With prefix caching full blocks have to be entered where others find them."""
    vllm_cpu.register()
    kept, request = manager(0, LONGEST, True), Request("0", [5] * 40, SamplingParams(max_tokens=8), None)
    entered = []
    monkeypatch.setattr(kept.coordinator, "cache_blocks", lambda _, count: entered.append(count))
    for count in (4, 4, 8):
        assert kept.allocate_slots(request, count) is not None
        request.num_computed_tokens += count
    assert entered == [4, 8, 16]
