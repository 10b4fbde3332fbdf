"""The two plans as plain data: a pre-training run and a serving engine. What the command prints, and its --json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stagecraft.contract.errors import UserError
from stagecraft.planning.architecture import Model
from stagecraft.planning.checkpointing import checkpointing
from stagecraft.planning.communication import training_traffic
from stagecraft.planning.flops import training_flops
from stagecraft.planning.formats import Formats
from stagecraft.planning.hardware import Cluster, Efficiencies
from stagecraft.planning.layout import Layout, Workload, problems
from stagecraft.planning.memory import Memory, State, training_memory
from stagecraft.planning.parameters import count
from stagecraft.planning.search import Candidate, powers, search
from stagecraft.planning.serving import Drafts, serve
from stagecraft.planning.step import Roofline, training_step


@dataclass(frozen=True)
class Run:
    """What is asked of a training plan: step, token budget, mean hours between failures of one GPU, dollars per GPU and hour."""

    work: Workload
    tokens: float
    mtbf_hours: float
    price: float


def plan_training(model: Model, run: Run, cluster: Cluster, recipe: Formats, efficiency: Efficiencies, layout: Layout | None = None,
                  state: State | None = None) -> dict[str, Any]:
    """Everything about a run under `layout`, or under the fastest that fits.

    Raises:
        UserError: the layout does not divide, or does not fit: by how much; or none does; or the job fails too often to get anywhere.
    """
    roofline = Roofline(cluster.gpu, efficiency)
    recipe = recipe.on(cluster.gpu)
    limit = cluster.gpu.memory * efficiency.memory_use
    searched: dict[str, int] | None = None
    if layout is None:
        try:
            found = search(model, run.work, cluster.count, roofline, recipe, state)
        except ValueError as error:
            raise UserError(f"no layout is possible: {error}", where=f"{cluster.count}x{cluster.gpu.name}",
                            mend="change the number of GPUs or the batch") from None
        if found.best is None:
            raise _too_big(found.smallest.layout, found.smallest.memory, limit, cluster, "no layout fits; the smallest, ", "use more GPUs")
        best, searched = found.best, {"possible": found.possible, "fitting": found.fitting}
    else:
        for problem in problems(layout, model, run.work, cluster.count):
            raise UserError(problem, where="--layout", mend="leave --layout out to search for one")
        memory = training_memory(model, run.work, layout, recipe, state)
        if memory.total > limit:
            raise _too_big(layout, memory, limit, cluster, "", "divide more (tp, pp, ep) or recompute=full")
        best = Candidate(layout, memory, training_step(model, run.work, layout, roofline, recipe, state))
    counts, step = count(model), best.step
    steps = run.tokens / run.work.tokens
    saving = checkpointing(counts.total + counts.mtp, cluster.count, run.mtbf_hours * 3600, efficiency.checkpoint_bandwidth,
                           efficiency.restart_seconds)
    hours = steps * step.seconds / 3600
    traffic = training_traffic(model, run.work, best.layout, recipe, cluster.gpu.domain, state)
    return {
        "cluster": f"{cluster.count}x{cluster.gpu.name}", "precision": recipe.name,
        "parameters": asdict(counts),
        "flops_per_token": training_flops(model, run.work.length, run.work.mtp_depths),
        "layout": {**asdict(best.layout), "text": str(best.layout)}, "searched": searched,
        "memory": {**asdict(best.memory), "total": best.memory.total, "limit": limit},
        "communication": {name: asdict(sent) for name, sent in traffic.items() if sent.nvlink or sent.network},
        "step": {"seconds": step.seconds, "parts": step.parts, "tokens": run.work.tokens, "tokens_per_gpu": step.tokens_per_gpu,
                 "flops_per_gpu": step.flops_per_gpu, "mfu_bf16": step.flops_per_gpu / cluster.gpu.peak["bfloat16"]},
        "run": {"tokens": run.tokens, "steps": steps, "days": hours / 24, "days_with_failures": hours / 24 / saving.useful,
                "gpu_hours": hours * cluster.count / saving.useful, "price": run.price,
                "cost": hours * cluster.count * run.price / saving.useful},
        "checkpoint": {"mtbf_hours_per_gpu": run.mtbf_hours, **asdict(saving), "steps_between": saving.daly / step.seconds},
    }


def _too_big(layout: Layout, memory: Memory, limit: float, cluster: Cluster, lead: str, mend: str) -> UserError:
    return UserError(
        f"{lead}{layout}: needs {memory.total / 1e9:.1f} GB per GPU of {limit / 1e9:.1f} GB usable on {cluster.gpu.name}, too much by "
        f"{(memory.total - limit) / 1e9:.1f} GB", where="--layout" if not lead else f"{cluster.count}x{cluster.gpu.name}", mend=mend)


def plan_serving(model: Model, cluster: Cluster, recipe: Formats, efficiency: Efficiencies, lengths: Sequence[tuple[int, int]], *,
                 drafts: Drafts | None, limit: int | None, price: float, tensor: int | None = None) -> dict[str, Any]:
    """Engines of 1, 2, 4, ... GPUs (or of `tensor`): the best number per prompt and answer length, with and without drafts.

    Raises:
        UserError: not one sequence fits: by how much.
    """
    roofline = Roofline(cluster.gpu, efficiency)
    rows = []
    for prompt, answer in lengths:
        for used in (None, drafts) if drafts else (None,):
            sizes = [tensor] if tensor else powers(cluster.count)
            tried = [serve(model, recipe, roofline, prompt, answer, gpus=size, drafts=used, limit=limit) for size in sizes]
            best = max(tried, key=lambda serving: serving.tokens)
            if not best.resident:
                short = min(serving.sequence - serving.room for serving in tried)
                raise UserError(f"weights of {best.weights / 1e9:.1f} GB and one sequence of {prompt} + {answer} tokens do not fit "
                                f"{sizes[-1]}x{cluster.gpu.name}, too much by {short / 1e9:.1f} GB", where="--gpus", mend="use more GPUs")
            rows.append({"prompt": prompt, "answer": answer, "drafts": used.length if used else 0,
                         "accepted": used.accepted if used else 1.0, **asdict(best),
                         "engines": cluster.count // best.gpus, "dollars_per_million": price / best.tokens / 3600 * 1e6})
    return {"cluster": f"{cluster.count}x{cluster.gpu.name}", "precision": recipe.name, "price": price,
            "parameters": asdict(count(model)), "serving": rows}
