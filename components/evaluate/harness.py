"""Runs benchmarks through lm-eval's evaluator, on whatever answers: the engine in this process, or an OpenAI endpoint."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate

from components.evaluate.benchmarks import Benchmark, describe
from stagecraft.contract.files import digest_of

HARNESS = f"lm-eval {version('lm-eval')}"


def run(model: LM, tasks: dict[str, Benchmark]) -> dict[str, dict[str, Any]]:
    """Ask every prompt of every task and judge every answer.

    Returns:
        task -> {"version", "metric", "digest" (of configuration, code and rows), "prompts": as `prompts` gives them, "strata": names or
        nulls, "scores": for each prompt the scores of its repeats, "answers": the first answer to each prompt}.
    """
    found = evaluate(model, {"tasks": tasks, "groups": {}}, bootstrap_iters=0, log_samples=True, apply_chat_template=True,
                     fewshot_as_multiturn=True)
    return {name: _gather(task, found["samples"][name]) for name, task in tasks.items()}


def prompts(task: Benchmark) -> list[str]:
    """Every prompt's text, with all else that an agentic task is made of."""
    return [_text(task, document) for document in task.eval_docs if not document["_repeat"]]


def _text(task: Benchmark, document: dict[str, Any]) -> str:
    return "\n".join([task.doc_to_text(document), *filter(None, [document.get("material")])])


def _gather(task: Benchmark, samples: list[dict[str, Any]]) -> dict[str, Any]:
    judged = samples[0]["filter"]  # of several filters the first counts
    asked: list[str] = []
    strata: list[str | None] = []
    scores: list[list[float]] = []
    answers: list[str] = []
    for sample in sorted((sample for sample in samples if sample["filter"] == judged), key=lambda sample: sample["doc_id"]):
        document, score = sample["doc"], float(sample[task.metric])
        if document["_repeat"]:
            scores[-1].append(score)
            continue
        asked.append(_text(task, document))
        strata.append(str(document[task.stratum]) if task.stratum else None)
        scores.append([score])
        answers.append(sample["resps"][0][0])
    return {"version": task.version, "metric": task.metric, "digest": digest_of([HARNESS, describe(task)]), "prompts": asked,
            "strata": strata, "scores": scores, "answers": answers}
