"""Evaluates one model in a process of its own.

One engine a process: what one model leaves behind in the engine never reaches the next one, a crash takes one model
with it, and two processes use two cores.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from components.evaluate.params import Params
from components.evaluate.protocol import Model, Protocol, engine_version, hardware, plugin_digest, precision_of, source_digest
from components.evaluate.text import bits, windows
from stagecraft.contract.errors import UserError, exit_on_user_error
from stagecraft.contract.files import digest_of, write_json
from stagecraft.contract.params import parse
from stagecraft.data.chat import encode_prompt
from stagecraft.data.tokenizer import EOD, IM_END, load_tokenizer
from stagecraft.environments import verify

Item = TypeVar("Item")


class Evaluator:
    """One model with everything it is asked.

    Args:
        model: checkpoint directory.
        params: the stage's parameters.
        rows: task rows.
        documents: {"id", "source", "text", "whole"}.
        progress: called with the number of prompts, answers, documents or benchmarks that are done.
    """

    def __init__(self, model: Path, params: Params, rows: list[dict[str, Any]], documents: list[dict[str, Any]],
                 progress: Callable[[int], None]):
        from stagecraft.inference.engine import Engine

        self.params, self.rows, self.documents, self.progress = params, rows, documents, progress
        self.tokenizer = load_tokenizer(model)
        self.stop = (self.tokenizer.convert_tokens_to_ids(IM_END),)
        self.prompts = [encode_prompt(self.tokenizer, row) for row in rows]
        self._check_lengths()
        self.engine = Engine(model, max_model_len=params.max_model_len, max_num_seqs=params.max_num_seqs, dtype=params.dtype,
                             seed=params.seed, tensor=params.tensor, threads=params.threads)

    def answers(self) -> list[dict[str, Any]]:
        """Greedy answers: {"id", "family", "correct", "finished", "tokens", "completion"}."""
        answers = []
        for part in _parts(list(zip(self.rows, self.prompts)), 2 * self.params.max_num_seqs):
            completions = self.engine.generate([prompt for _, prompt in part], temperature=0.0,
                                               max_tokens=self.params.tasks.max_new_tokens, stop_token_ids=list(self.stop))
            answers += [self._judge(row, completion) for (row, _), (completion,) in zip(part, completions)]
            self.progress(len(part))
        return answers

    def sampled(self) -> list[dict[str, Any]]:
        """Sampled answers to the first prompts: {"id", "family", "samples", "correct"}, the last two are counts."""
        settings = self.params.pass_at_k
        counted = []
        for part in _parts(list(zip(self.rows, self.prompts))[:settings.prompts], max(1, 2 * self.params.max_num_seqs // settings.samples)):
            completions = self.engine.generate([prompt for _, prompt in part], temperature=settings.temperature, n=settings.samples,
                                               max_tokens=self.params.tasks.max_new_tokens, stop_token_ids=list(self.stop),
                                               seed=self.params.seed)
            for (row, _), several in zip(part, completions):
                correct = sum(self._judge(row, completion)["correct"] for completion in several)
                counted.append({"id": row["id"], "family": row["family"], "samples": len(several), "correct": correct})
            self.progress(len(part) * settings.samples)
        return counted

    def texts(self) -> list[dict[str, Any]]:
        """Documents read: {"id", "source", "bits", "bytes", "tokens"}.

        `bits` is the sum of -log2 p over all tokens of the document, the end of the document among them unless the document
        was cut, each token conditioned on what text.windows() puts before it.
        """
        start = self.tokenizer.convert_tokens_to_ids(EOD)
        read = []
        for part in _parts(self.documents, 8):
            encoded = [self.tokenizer.encode(document["text"], add_special_tokens=False, split_special_tokens=True)
                       + [start] * document["whole"] for document in part]
            cut = [windows(tokens, start, self.params.text.window, self.params.text.overlap) for tokens in encoded]
            logprobs = iter(self.engine.logprobs([window.tokens for several in cut for window in several]))
            for document, tokens, several in zip(part, encoded, cut):
                read.append({"id": document["id"], "source": document["source"], "bytes": len(document["text"].encode()),
                             "tokens": len(tokens), "bits": sum(bits(window, next(logprobs)) for window in several)})
            self.progress(len(part))
        return read

    def benchmarks(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """What `harness.run` returns of the benchmarks asked for, and those that cannot run on this machine, with the reason."""
        settings = self.params.benchmarks
        if not settings.tasks:
            return {}, {}
        from components.evaluate import benchmarks, harness
        from components.evaluate.engine_lm import EngineLM

        names, not_run = benchmarks.divide(settings.tasks)
        tasks = {name: benchmarks.load(name, settings, self.params.seed) for name in names}
        model = EngineLM(self.engine, self.tokenizer, self.stop, max_new_tokens=settings.max_new_tokens, seed=self.params.seed,
                         batch=2 * self.params.max_num_seqs)
        found = harness.run(model, tasks) if tasks else {}
        self.progress(len(settings.tasks))
        return found, not_run

    def protocol(self, benchmarks: dict[str, dict[str, Any]]) -> Protocol:
        params = self.params
        engine, version = engine_version()
        return Protocol(
            engine=engine, engine_version=version, plugin=plugin_digest(), compute_dtype=params.dtype, hardware=hardware(),
            tensor=params.tensor, threads=params.threads, max_num_seqs=params.max_num_seqs, max_model_len=params.max_model_len,
            max_new_tokens=params.tasks.max_new_tokens,
            temperature=0.0, sampling_temperature=params.pass_at_k.temperature, samples=params.pass_at_k.samples, stop=self.stop,
            seed=params.seed, window=params.text.window, overlap=params.text.overlap,
            benchmarks=digest_of([self.params.benchmarks.max_new_tokens, {name: found["digest"] for name, found in benchmarks.items()}]),
            prompt_template=digest_of(self.tokenizer.chat_template), prompts=digest_of(self.prompts), tasks=digest_of(self.rows),
            verifiers=source_digest([verify.__module__]), text=digest_of(self.documents),
        )

    def _judge(self, row: dict[str, Any], completion: Any) -> dict[str, Any]:
        tokens = completion.token_ids
        spoken = tokens[:-1] if tokens and tokens[-1] in self.stop else tokens
        text = self.tokenizer.decode(spoken, skip_special_tokens=False)
        correct = verify(row, text, finished=completion.finished).score == 1.0
        return {"id": row["id"], "family": row["family"], "correct": correct, "finished": completion.finished, "tokens": len(tokens),
                "completion": text}

    def _check_lengths(self) -> None:
        longest, row = max((len(prompt), row["id"]) for prompt, row in zip(self.prompts, self.rows))
        room = self.params.max_model_len - self.params.tasks.max_new_tokens
        if longest > room:
            raise UserError(f"the prompt of {row} has {longest} tokens, max_model_len less max_new_tokens leaves {room}",
                            where="evaluate.max_model_len", mend=f"raise it to {longest + self.params.tasks.max_new_tokens} or more")


def evaluate(job: dict[str, Any], progress: Callable[[int], None]) -> dict[str, Any]:
    """Evaluate the model of one job.

    Returns:
        {"model", "protocol", "benchmarks", "not_run", "answers", "sampled", "texts"} as plain data; `sampled` is empty for a model
        that pass@k leaves out.
    """
    params = parse(Params, job["params"], "evaluate")
    path = Path(job["path"])
    model = Model(name=job["name"], digest=job["digest"], precision=precision_of(path))
    evaluator = Evaluator(path, params, job["rows"], job["documents"], progress)
    try:
        benchmarks, not_run = evaluator.benchmarks()
        return {
            "model": asdict(model),
            "protocol": asdict(evaluator.protocol(benchmarks)),
            "benchmarks": benchmarks, "not_run": not_run,
            "texts": evaluator.texts(),
            "answers": evaluator.answers(),
            "sampled": evaluator.sampled() if model.name in params.pass_at_k.models else [],
        }
    finally:
        evaluator.engine.close()


def run(job: Path, output: Path, progress: Connection) -> None:
    """What the process does.

    Args:
        job: a file with what is to be done, and where the result goes.
        output: receives what engines print, and errors.
        progress: receives numbers of things done.
    """
    with output.open("w") as stream:
        for standard in (sys.stdout, sys.stderr):
            os.dup2(stream.fileno(), standard.fileno())
    told = json.loads(job.read_text())
    exit_on_user_error(lambda: write_json(Path(told["result"]), evaluate(told, progress.send)))


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for begin in range(0, len(items), size):
        yield items[begin:begin + size]
