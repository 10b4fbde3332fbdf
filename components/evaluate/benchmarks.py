"""Benchmarks from YAML to lm-eval's task objects: where their data comes from, how much of it is asked, and how often."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.api_models import JsonChatStr
from lm_eval.tasks._yaml_loader import load_yaml

from components.evaluate.params import MADE_PROMPTS, TASKS, Benchmarks
from components.evaluate.protocol import source_digest
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import sha256
from stagecraft.data.tables import READERS, read_table
from stagecraft.environments.confinement import confine

REQUEST = "request"
"""Role of the message that carries what a request needs besides its messages: `tools`, `seed` of a sampled answer, `EPISODE`. lm-eval
sends requests of unlike arguments one group after the other; as a message they stay one batch. The models take it off."""
EPISODE = "episode"
"""Member of that message with the row of an environment: the request is a conversation (episodes.py)."""

_FUNCTION = re.compile(r"!function ([\w.]+)\.\w+")  # the module of one that a YAML names
_TURN = 1_000_003  # between the seeds of two turns: more than any task repeats

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of everything that a YAML leaves to its defaults


class Benchmark(ConfigurableTask):
    """A task of lm-eval whose prompts are asked `repeats` times each, with a seed of its own every time.

    lm-eval's own repeats would be filtered down to one answer before they are judged; here each is judged.
    """

    def __init__(self, config: dict[str, Any], source: Callable[[], dict[str, Sequence[dict[str, Any]]]], prompts: int, seed: int):
        self.repeats = config.pop("repeats", 1)
        metadata = config["metadata"]
        self.version, self.stratum = str(metadata["version"]), metadata.get("stratum")
        self._prompts, self._seed = prompts, seed
        super().__init__(config={**config, "custom_dataset": lambda **_: self._ask(source(), config["test_split"])})
        self.set_config("num_fewshot", config.get("num_fewshot") or 0)
        self.set_fewshot_seed(0)
        self.metric = next(iter(self._metric_fn_list))

    def construct_requests(self, doc: dict[str, Any], ctx: JsonChatStr, **kwargs: Any) -> Instance:
        own = {"tools": json.loads(doc["tools"]) if doc.get("tools") else None,
               EPISODE: json.loads(doc["episode"]) if doc.get("episode") else None,
               "seed": self._seed + doc["_repeat"] if self.config.generation_kwargs.get("temperature") else None}
        own = {key: value for key, value in own.items() if value is not None}
        if own:
            ctx = JsonChatStr(json.dumps([*json.loads(ctx.prompt), {"role": REQUEST, **own}]))
        return super().construct_requests(doc, ctx, **kwargs)

    def _ask(self, rows: dict[str, Sequence[dict[str, Any]]], split: str) -> dict[str, datasets.Dataset]:
        asked = list(rows[split])[:self._prompts or None]
        if len(asked) < 2:
            raise UserError(f"{len(asked)} prompts, a standard error needs two", where=f"task {self.config.task}", mend="give more data")
        repeated = [{**row, "_prompt": index, "_repeat": repeat} for index, row in enumerate(asked) for repeat in range(self.repeats)]
        return {name: datasets.Dataset.from_list(repeated if name == split else list(rows[name])) for name in rows}


def load(name: str, settings: Benchmarks, seed: int, turn: int = 0) -> Benchmark:
    """One task by the name of its YAML.

    Args:
        seed: of prompts that are made, and of sampled answers.
        turn: a run repeated as a whole asks the same prompts, and samples other answers.

    Raises:
        UserError: the data of a real benchmark is not at hand, or too little of it.
    """
    config = load_yaml(TASKS / f"{name}.yaml")
    made = config.pop("custom_dataset", None)
    if made:
        arguments = {**config["metadata"], "lengths": settings.lengths, "prompts": settings.prompts or MADE_PROMPTS, "seed": seed}
        return Benchmark(config, lambda: made(**arguments), 0, seed + _TURN * turn)
    folder = Path(settings.data) / config.pop("dataset_path")
    splits = {config["test_split"], config.get("fewshot_split") or config["test_split"]}
    return Benchmark(config, lambda: {split: read(folder, split) for split in sorted(splits)}, settings.prompts,
                     seed + _TURN * turn)


def divide(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those tasks that can run on this machine, and the others with the reason: code of a model runs in a sandbox or not at all."""
    needy = [name for name in names if load_yaml(TASKS / f"{name}.yaml")["metadata"].get("sandbox")]
    refused = confine("").refused if needy else ""
    return [name for name in names if not refused or name not in needy], dict.fromkeys(needy, refused) if refused else {}


def describe(task: Benchmark) -> dict[str, Any]:
    """All that a figure of the task depends on besides the model, as plain data: its file, the code it names, and the rows."""
    file = TASKS / f"{task.config.task}.yaml"
    return {"file": sha256(file), "code": source_digest(_FUNCTION.findall(file.read_text())), "repeats": task.repeats,
            "rows": {split: rows.to_list() for split, rows in task.dataset.items()}}


def read(folder: Path, split: str) -> list[dict[str, Any]]:
    """The rows of `<split>*.parquet`, `.jsonl` or `.csv` anywhere below a folder, files in the order of their names.

    Raises:
        UserError: there is no such file, or one cannot be read.
    """
    paths = [path for path in sorted(folder.rglob(f"{split}*")) if path.suffix in READERS]
    if not paths:
        raise UserError(f"no {split}.parquet, .jsonl or .csv", where=str(folder),
                        mend="put the data there, name its folder in evaluate.benchmarks.data, or take the task out of the list")
    return [row for path in paths for row in read_table(path)]
