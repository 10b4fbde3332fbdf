"""The routed experts of one layer in decoding: our loop in C++ beside our operators of PyTorch's products, by the number of tokens.

    python -m benchmarks.expert_loop [--tokens 1,4,16,64,256,1024,4096] [--rounds 15]

Both choose the experts and do all that is routed, on the same values, one thread, in turn; their results must agree. Shapes: the laptop's
profile, and four times its widths. Medians of CPU microseconds. `MOST` of stagecraft/inference/vllm_cpu/latent_moe.py rests on it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from vllm.model_executor.layers.fused_moe.activation import MoEActivation

from stagecraft.inference.vllm_cpu.latent_moe import experts
from stagecraft.inference.vllm_cpu.moe import SquaredReluExperts
from stagecraft.inference.vllm_cpu.routing import choose
from stagecraft.onednn import replace_products

SHAPES = {"laptop": (32, 2, 64, 128), "4 x the widths": (32, 2, 256, 512)}  # experts, chosen, latent, ffn
SCALE = 2.5


def operators(logits: Tensor, bias: Tensor, x: Tensor, up: Tensor, down: Tensor, chosen: int, renormalize: bool, scale: float) -> Tensor:
    """`experts` by the operators that the engine takes where the loop does not serve."""
    weights, picked = choose(logits, chosen, renormalize, scale, bias)
    y = torch.empty_like(x)
    object.__new__(SquaredReluExperts).apply(
        y, x, up, down, weights, picked, activation=MoEActivation.RELU2_NO_MUL, global_num_experts=len(up), expert_map=None,
        a1q_scale=None, a2_scale=None, workspace13=y, workspace2=y, expert_tokens_meta=None, apply_router_weight_on_input=False)
    return y


def microseconds(function: Callable[[], Tensor]) -> float:
    """CPU time of one call, of as many as take a few milliseconds."""
    started = time.process_time()
    calls = 0
    while time.process_time() - started < 0.004:
        function()
        calls += 1
    return 1e6 * (time.process_time() - started) / calls


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,4,16,64,256,1024,4096")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    replace_products()  # as in the engine's processes
    generator = torch.Generator().manual_seed(0)
    table = Table(title="CPU microseconds of the routed experts, medians")
    for column in ("shapes", "tokens", "loop", "operators", "loop is faster by"):
        table.add_column(column, justify="left" if column == "shapes" else "right")
    for name, (count, chosen, latent, ffn) in SHAPES.items():
        up, down = (torch.randn(count, *shape, generator=generator) / 8 for shape in ((ffn, latent), (latent, ffn)))
        bias = torch.randn(count, generator=generator) / 8
        for tokens in map(int, args.tokens.split(",")):
            logits, x = torch.randn(tokens, count, generator=generator), torch.randn(tokens, latent, generator=generator)
            ways = [partial(way, logits, bias, x, up, down, chosen, True, SCALE) for way in (experts, operators)]
            torch.testing.assert_close(ways[0](), ways[1](), rtol=1e-3, atol=1e-3)
            loop, other = (statistics.median(times) for times in zip(*([microseconds(way) for way in ways] for _ in range(args.rounds))))
            table.add_row(name, str(tokens), f"{loop:,.0f}", f"{other:,.0f}", f"{other / loop:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
