"""AutoQuantize's calibration and scores from ModelOpt 0.47.0, and everything in its search that is worked around or left unused.

| defect, below modelopt/torch/quantization | here |
|---|---|
| _auto_quantize_cost.py:110  of experts without a gate only `down_proj` is counted | own accounting (`operators.py`) |
| algorithms.py:239  NVFP4 with static block scales, as in the shipped recipe, costs 4 bits where it takes 4.5 | own accounting |
| algorithms.py:1082  operators that are not searched count at 16 bits, however they are stored | own accounting |
| algorithms.py:1709  the objective reaches the solver unscaled, whose absolute tolerance passes worse choices | `programme.py` |
| algorithms.py:1475  fused experts match no rule and are scored at the latent output, all others of their kind at the mixer's | `_rules` |
| algorithms.py:1860  `method="kl_div"` bounds the worst score by a threshold, it does not minimise the sum | `method="gradient"` |

`tests/quantize/test_search_defects.py` shows each in ModelOpt as it comes, so it fails once upstream has mended it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from components.quantize.formats import Scales, uniform
from components.quantize.operators import FORMATS
from components.quantize.programme import Programme

UNSEARCHED = ["lm_head", "*.conv1d"]  # linear layers to ModelOpt that are no operators of a search


def sensitivities(model: torch.nn.Module, formats: Sequence[str], scales: Scales, batches: Sequence[Tensor],
                  on_batch: Callable[[], None]) -> dict[str, dict[str, float]]:
    """Second-order estimate of what each format does to the loss, operator by operator; `model` is used up.

    With g the gradient of the loss at an operator's output and d what a format changes there, the estimate is sum((g d)^2) / 2,
    the diagonal of the Fisher information for the Hessian (ModelOpt's `AutoQuantizeGradientSearcher`). As the loss is summed over
    tokens, the sum divided by their number estimates the rise of the loss in nats per token.

    Args:
        model: unquantised, on the device of `batches`.
        formats: to score; "bf16" costs nothing and is not scored.
        batches: int64 [B, T] each.
        on_batch: called `(number of formats + 1) * len(batches)` times.

    Returns:
        operator -> format -> nats per token, never more for a finer format than for a coarser.
    """
    import modelopt.torch.quantization as mtq

    scored = [fmt for fmt in FORMATS if fmt in formats and fmt != "bf16"]

    def forward(model: torch.nn.Module, batch: Tensor) -> None:
        with torch.no_grad():
            model(batch, use_cache=False)
        on_batch()

    def forward_backward(model: torch.nn.Module, batch: Tensor) -> None:
        logits = model(batch, use_cache=False).logits[:, :-1].float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").backward()
        on_batch()

    with _rules():
        _, state = mtq.auto_quantize(
            model, constraints={"effective_bits": 16.0}, quantization_formats=[uniform(fmt, scales) for fmt in scored],
            data_loader=batches, forward_step=forward, forward_backward_step=forward_backward, disabled_layers=UNSEARCHED,
            num_calib_steps=len(batches), num_score_steps=len(batches), method="gradient")
    tokens = sum(batch[:, 1:].numel() for batch in batches)
    found = {}
    for key, statistics in state["candidate_stats"].items():
        if len(statistics["scores"]) > 1:  # in the order of the bits; the last is unquantised
            name = key.removesuffix(".quant_recipe").replace("model.", "backbone.", 1)
            found[name] = {fmt: float(score) / (2 * tokens) for fmt, score in zip((*scored, "bf16"), statistics["scores"])}
    return found


def modelopt_choice(programme: Programme, budget: float) -> dict[str, str] | None:
    """What ModelOpt's own linear programme chooses on the scores and costs of `programme`; None: it finds nothing.

    ModelOpt merges tied operators beforehand; `constant` is taken off the budget.
    """
    from modelopt.torch.quantization.algorithms import AutoQuantizeGradientSearcher

    searcher = AutoQuantizeGradientSearcher()
    searcher.config = searcher.default_search_config
    groups = programme.groups()
    searcher.candidate_stats = {
        str(index): {"formats": list(programme.formats), "scores": programme.sensitivities[group].sum(0).tolist(),
                     "costs": programme.costs[group].sum(0).tolist()} for index, group in enumerate(groups)}
    recipes, satisfied = searcher.run_search_with_stats(budget - programme.constant)
    if not satisfied:
        return None
    return {programme.names[member]: recipes[str(index)]["format"] for index, group in enumerate(groups) for member in group}


@contextlib.contextmanager
def _rules() -> Iterator[None]:
    """Score fused experts at the output of their mixer, and every operator by itself: ties are the programme's business."""
    from modelopt.torch.quantization.algorithms import AutoQuantizeGradientSearcher as Searcher

    score_rules, group_rules = Searcher.score_module_rules, Searcher.quant_grouping_rules
    Searcher.score_module_rules, Searcher.quant_grouping_rules = [r"^(.*?\.mixer)\.experts$", *score_rules], []
    try:
        yield
    finally:
        Searcher.score_module_rules, Searcher.quant_grouping_rules = score_rules, group_rules
