"""What an FP16 cache of Mamba states does to a checkpoint: drift over thousands of decoded tokens, and the length of answers.

    python -m benchmarks.ssm_state drift   [--checkpoint artifacts/aligned] [--corpus artifacts/corpus] [--texts 4] [--steps 8192]
    python -m benchmarks.ssm_state answers [--checkpoint artifacts/aligned] [--corpus artifacts/corpus] [--prompts 300] [--samples 4]

`drift` feeds held-out text token by token, the same to all, and compares states and predictions with those of an FP32 cache.
It runs in transformers, whose cache can be read and written between two tokens, which the engine's cannot; a test holds that both
give the same predictions with the same rounding. `answers` asks the engine RL prompts, greedily and sampled from the same seeds, and
compares the lengths. One thread unless OMP_NUM_THREADS says otherwise. A figure goes to --out, a directory.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats
from torch import Tensor

from benchmarks.state_rounding import Rounding, StateRounding, rounded_states
from stagecraft.contract.figures import write_svg
from stagecraft.data.blend import read_blend
from stagecraft.data.chat import encode_prompt
from stagecraft.data.indexed import read_indexed
from stagecraft.data.tasks.rows import read_rows
from stagecraft.data.tokenizer import IM_END, load_tokenizer

MODES: dict[str, Rounding] = {"FP16 to nearest": "nearest", "FP16 stochastic": "stochastic"}
SPANS = ((0, 64), (64, 512), (512, 2048), (2048, 8192))


@dataclass(frozen=True)
class Step:
    """One decoded token of every text under every rounding, against the first rounding; float64 [roundings - 1, texts].

    Attributes:
        error: root mean square of the states' difference over that of the states, averaged over Mamba layers.
        bias: mean of the difference in the direction of the state, over the state's mean magnitude: below 0 states shrink.
        kl: KL divergence of the next-token distribution, nats.
    """

    error: Tensor
    bias: Tensor
    kl: Tensor


@torch.no_grad()
def decode(model: torch.nn.Module, texts: Tensor, roundings: Sequence[StateRounding]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Feed `texts` [N, T] one token at a time, a copy of each per rounding.

    Yields:
        log-probabilities [roundings, N, V], and for each Mamba layer the states as stored [roundings, N, heads, head, state].
    """
    from transformers import DynamicCache

    cache, shape = DynamicCache(config=model.config), (len(roundings), len(texts))
    for step in range(texts.shape[1]):
        ids = texts[:, step].repeat(len(roundings))[:, None]
        logits = model(ids, past_key_values=cache, use_cache=True).logits[:, -1]
        kept = [layer.recurrent_states[0] for layer in cache.layers if hasattr(layer, "recurrent_states")]
        states = [state for state in kept if state is not None]  # layers of experts have a place for a state and none
        for state in states:
            for part, rounding in zip(state.view(*shape, *state.shape[1:]), roundings):
                part.copy_(rounding.stored(part) if step else rounding.prefilled(part))
        yield logits.float().log_softmax(-1).view(*shape, -1), [state.view(*shape, *state.shape[1:]) for state in states]


def compare(decoded: Iterable[tuple[Tensor, list[Tensor]]]) -> Iterator[Step]:
    """What `decode` yields, every rounding against the first."""
    for logprobs, states in decoded:
        errors, biases = [], []
        for state in states:
            flat = state.flatten(2).double()
            difference = flat[1:] - flat[0]
            errors.append(difference.pow(2).mean(-1).sqrt() / flat[0].pow(2).mean(-1).sqrt())
            biases.append((difference * flat[0].sign()).mean(-1) / flat[0].abs().mean(-1))
        kl = (logprobs[0].exp() * (logprobs[0] - logprobs[1:])).sum(-1, dtype=torch.float64)
        yield Step(torch.stack(errors).mean(0), torch.stack(biases).mean(0), kl)


def heldout_texts(corpus: Path, count: int, length: int) -> Tensor:
    """int64 [count, length] tokens of held-out documents, one after another."""
    documents = [document for prefix, _ in read_blend(corpus, "heldout") for document in read_indexed(prefix)]
    tokens = np.concatenate(documents)
    if len(tokens) < count * length:
        raise SystemExit(f"{corpus}: {len(tokens)} held-out tokens where {count} x {length} are wanted - lower --texts or --steps")
    return torch.from_numpy(tokens[:count * length].reshape(count, length).astype(np.int64))


def drift(checkpoint: Path, corpus: Path, texts: int, steps: int, out: Path | None) -> None:
    """Print and plot the drift from an FP32 cache."""
    from transformers import NemotronHForCausalLM

    model = NemotronHForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True).eval()
    roundings = [StateRounding("none"), *(StateRounding(rounding, seed=1) for rounding in MODES.values())]
    decoded = decode(model, heldout_texts(corpus, texts, steps), roundings)
    taken = list(compare(track(decoded, "decoding", total=steps)))
    series = {name: torch.stack([getattr(step, name) for step in taken]) for name in ("error", "bias", "kl")}  # [steps, modes, texts]
    table = Table(title=f"Against an FP32 state cache, {texts} held-out texts of {steps} tokens, mean ± standard error over texts")
    for column in ("cache", "tokens", "error of states", "bias of states", "KL, nats"):
        table.add_column(column, justify="left" if column == "cache" else "right")
    for index, name in enumerate(MODES):
        for first, last in SPANS:
            if first < steps:
                by_text = {key: values[first:last, index].mean(0) for key, values in series.items()}
                table.add_row(name, f"{first}-{min(last, steps) - 1}", *(_plus_minus(by_text[key]) for key in ("error", "bias", "kl")))
    Console(width=130).print(table)
    if out:
        _save(plot(series), out / "ssm_state_drift.svg")


def plot(series: dict[str, Tensor]) -> Figure:
    """Error of the states and of the predictions by token."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, key, label in zip(figure.subplots(1, 2), ("error", "kl"), ("relative error of the states", "KL from FP32, nats")):
        for index, name in enumerate(MODES):
            values = series[key][:, index].mean(-1)
            width = max(1, len(values) // 128)
            smooth = values[:len(values) // width * width].view(-1, width).mean(-1)
            axes.plot([(place + 0.5) * width for place in range(len(smooth))], smooth, label=name)
        axes.set(xlabel="decoded tokens", ylabel=label, yscale="log")
        axes.legend()
    return figure


def answers(checkpoint: Path, corpus: Path, prompts: int, samples: int, max_tokens: int) -> None:
    """Print the change in answer length."""
    from stagecraft.inference.engine import Engine

    tokenizer = load_tokenizer(corpus / "tokenizer")
    rows = read_rows(corpus / "tasks" / "rl.jsonl")[:prompts]
    asked = [encode_prompt(tokenizer, row) for row in rows]
    stop = [tokenizer.convert_tokens_to_ids(IM_END)]
    table = Table(title=f"Answers to {len(rows)} prompts, {samples} sampled and one greedy to each; change against FP32 with 95% interval")
    for column in ("cache", "greedy, tokens", "change", "sampled, tokens", "change", "unfinished"):
        table.add_column(column, justify="left" if column == "cache" else "right")
    with Engine(checkpoint, max_model_len=max(map(len, asked)) + max_tokens, max_num_seqs=64) as engine:
        before: list[Tensor] = []
        for name, rounding in {"FP32": "none", **MODES}.items():
            cells, unfinished = [], 0.0
            for place, settings in enumerate(({"temperature": 0.0}, {"temperature": 1.0, "n": samples, "seed": 5})):
                with rounded_states(StateRounding(rounding, seed=1)):
                    groups = engine.generate(asked, max_tokens=max_tokens, stop_token_ids=stop, **settings)
                lengths = torch.tensor([[len(answer.token_ids) for answer in group] for group in groups], dtype=torch.float64).sum(1)
                unfinished = float(np.mean([not answer.finished for group in groups for answer in group]))
                if name == "FP32":
                    before.append(lengths)
                cells += [f"{float(lengths.mean()) / settings.get('n', 1):.2f}", change(lengths, before[place]) if name != "FP32" else ""]
            table.add_row(name, *cells, f"{unfinished:.1%}")
    Console(width=130).print(table)


def change(lengths: Tensor, before: Tensor) -> str:
    """Sum over sum less one, with the 95% interval of the ratio linearised over prompts (Cochran, Sampling Techniques, ch. 6)."""
    ratio, n = float(lengths.sum() / before.sum()), len(lengths)
    error = float((lengths - ratio * before).std() / before.mean()) / n**0.5
    reach = float(stats.t.ppf(0.975, n - 1)) * error
    return f"{ratio - 1:+.2%} ({ratio - 1 - reach:+.2%} to {ratio - 1 + reach:+.2%})"


def _plus_minus(values: Tensor) -> str:
    return f"{float(values.mean()):.2e} ± {float(values.std()) / len(values)**0.5:.0e}"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_svg(figure, path)
    print(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["drift", "answers"])
    parser.add_argument("--checkpoint", type=Path, default=Path("artifacts/aligned"))
    parser.add_argument("--corpus", type=Path, default=Path("artifacts/corpus"))
    parser.add_argument("--texts", type=int, default=4, help="at least 2")
    parser.add_argument("--steps", type=int, default=8192, help="tokens of each text")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--samples", type=int, default=4, help="answers to a prompt at temperature 1")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--out", type=Path, help="directory of the figure")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if options.what == "drift":
        drift(options.checkpoint, options.corpus, options.texts, options.steps, options.out)
    else:
        answers(options.checkpoint, options.corpus, options.prompts, options.samples, options.max_tokens)


if __name__ == "__main__":
    main()
