"""Serving: what is touched, what fits, and how speed moves; the report's two ratios."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peers import peer
from stagecraft.planning.architecture import Product
from stagecraft.planning.formats import formats
from stagecraft.planning.hardware import efficiencies, gpu
from stagecraft.planning.parameters import count
from stagecraft.planning.serving import (
    Drafts,
    cache_bytes_per_token,
    decode_seconds,
    fixed_bytes,
    prefill_seconds,
    serve,
    touched,
    weight_bytes,
)
from stagecraft.planning.step import Roofline
from tests.planning.models import SUPER

B200 = Roofline(gpu("B200"), efficiencies())
NVFP4, BF16 = formats("serving", "nvfp4"), formats("serving", "bf16")


def test_experts_touched_are_those_of_random_routing():
    generator = random.Random(0)
    runs = [len({expert for _ in range(30) for expert in generator.sample(range(64), 4)}) for _ in range(3000)]
    assert touched(Product("experts up", 8, 8, copies=64, used=4), 30) == pytest.approx(sum(runs) / len(runs), rel=5e-3)


def test_bf16_weights_are_two_bytes_a_parameter_but_for_the_router():
    counts = count(SUPER)
    routers = sum(p.held for layer in SUPER.layers for p in layer.products if p.operator == "router")
    assert weight_bytes(SUPER, BF16) == pytest.approx(2 * counts.total + 2 * routers, rel=1e-6)  # the router is FP32
    assert weight_bytes(SUPER, BF16, mtp=True) - weight_bytes(SUPER, BF16) == 2 * counts.mtp
    assert weight_bytes(SUPER, NVFP4) < 1.15 * (counts.routed * 9 / 16 + counts.total - counts.routed)  # the rest in FP8


def test_the_reports_ratios_come_out_of_the_plain_roofline():
    """2.2 and 7.5 (arXiv 2604.12374, section 6); like for like the second is about 2."""
    qwen = peer("qwen3.5-122b-a10b")
    ours = serve(SUPER, NVFP4, B200, 8192, 65536)
    oss = serve(peer("gpt-oss-120b"), formats("serving", "mxfp4"), B200, 8192, 65536)
    theirs = serve(qwen, BF16, B200, 8192, 65536, gpus=2)
    assert ours.tokens / oss.tokens == pytest.approx(2.2, rel=0.1)
    assert ours.tokens / theirs.tokens == pytest.approx(7.5, rel=0.1)
    assert 1.5 < serve(SUPER, BF16, B200, 8192, 65536, gpus=2).tokens / theirs.tokens < 2.5
    assert not serve(qwen, BF16, B200, 8192, 65536).resident  # 244 GB of weights


@settings(max_examples=20, deadline=None)
@given(st.integers(128, 65536), st.integers(16, 65536), st.sampled_from([1, 2, 4]))
def test_what_is_resident_fits_and_one_more_does_not(prompt, answer, gpus):
    serving = serve(SUPER, NVFP4, B200, prompt, answer, gpus=gpus)
    usable = gpus * B200.gpu.memory * B200.efficiency.serving_memory_use
    assert serving.weights + serving.resident * serving.sequence <= usable < serving.weights + (serving.resident + 1) * serving.sequence
    longer = serve(SUPER, NVFP4, B200, prompt, answer + 1024, gpus=gpus)
    assert longer.resident <= serving.resident


@pytest.mark.parametrize(("gpus", "copies"), [(1, 1), (2, 1), (4, 2), (8, 4)])
def test_each_of_more_gpus_than_key_heads_keeps_a_copy_of_one(gpus, copies):
    """Two heads of keys; of what one GPU keeps of a sequence vLLM says the same (`ModelConfig.get_num_kv_heads`)."""
    cache, states = 65536 * cache_bytes_per_token(SUPER.layers, NVFP4), fixed_bytes(SUPER, NVFP4)
    assert serve(SUPER, NVFP4, B200, 65536 - 8, 16, gpus=gpus).sequence == pytest.approx(copies * cache + states)
    read = [decode_seconds(SUPER, NVFP4, B200, 64, context, gpus) for context in (10**6, 2 * 10**6)]
    assert read[1] - read[0] == pytest.approx(64 * copies * cache / 65536 * 10**6 / gpus / (B200.gpu.bandwidth * B200.efficiency.memory))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 200000))
def test_a_step_costs_more_and_a_token_less_the_more_sequences_share_it(sequences, context):
    one, two = (decode_seconds(SUPER, NVFP4, B200, number, context) for number in (sequences, sequences + 1))
    assert one <= two and two / (sequences + 1) <= one / sequences
    assert one <= decode_seconds(SUPER, NVFP4, B200, sequences, context + 1)


def test_one_sequence_reads_its_active_weights():
    """With one short sequence a step is the time to read what one token passes."""
    recipe = formats("serving", "bf16")
    counts = count(SUPER)
    read = 2 * (counts.active - SUPER.embedding) / (B200.gpu.bandwidth * B200.efficiency.memory)
    assert decode_seconds(SUPER, recipe, B200, 1, 1) == pytest.approx(read, rel=0.06)


def test_drafts_accept_as_published_and_fewer_accept_less():
    assert Drafts.expected(7).accepted == pytest.approx(3.45)
    assert 1 < Drafts.expected(1).accepted < Drafts.expected(3).accepted < 3.45
    plain, drafted = (decode_seconds(SUPER, NVFP4, B200, 64, 8192, drafts=drafts) for drafts in (None, Drafts.expected(3)))
    assert plain < drafted < 4 * plain


def test_prompts_are_arithmetic():
    """A long prompt takes at least its products at the peak of the narrowest format."""
    flops = 2 * (count(SUPER).active - 2 * SUPER.embedding) * 32768
    assert flops / B200.gpu.peak["nvfp4"] < prefill_seconds(SUPER, NVFP4, B200, 32768) < flops / B200.gpu.peak["bfloat16"] * 2.5
