"""The whole stage on a small directory: what is kept, what is told, and that two runs are one."""

import json
from dataclasses import asdict
from pathlib import Path
from random import Random

import pyarrow
import pytest
from pyarrow import parquet

from components.curate.stage import Params, main
from stagecraft.contract.errors import UserError
from stagecraft.contract.manifest import describe_files
from stagecraft.contract.params import parse
from stagecraft.contract.runlog import RunLog
from stagecraft.data.indexed import read_indexed
from stagecraft.data.tasks import FAMILIES, prompt_key, read_rows
from stagecraft.data.tokenizer import load_tokenizer

VALUES = {
    "seed": 0, "input": "system", "sample_bytes": 10_000_000,
    "quality": {"min_characters": 100, "max_characters": 100_000, "max_line_characters": 2000, "min_letter_share": 0.6,
                "min_ascii_share": 0.97, "max_repeated_share": 0.3},
    "near_duplicate_similarity": 0.75, "heldout_share": 0.1, "vocab_size": 512, "tokenizer_bytes": 1_000_000, "max_length": 256,
    "tasks": {"sft_rows": 700, "rl_rows": 140, "heldout_rows": 70, "flawed": dict.fromkeys(FAMILIES, 0.4),
              "sft_weights": {}},
}
NOTES: list[str] = []


class Notes:
    """A sink that keeps the notes."""

    def note(self, message: str) -> None:
        NOTES.append(message)

    def __getattr__(self, name: str):
        return lambda *arguments: None


def parameters(**changes) -> Params:
    return parse(Params, {**VALUES, **changes}, "params.yaml: curate")


def run(tmp_path: Path, name: str, **changes) -> tuple[Path, dict[str, float]]:
    for part in ("corpus", "plots", "work"):
        (tmp_path / name / part).mkdir(parents=True)
    NOTES.clear()
    log = RunLog("curate", tmp_path / name / "plots", tmp_path / name / "work", [Notes()])
    return tmp_path / name / "corpus", main(parameters(**changes), {}, {"corpus": tmp_path / name / "corpus"}, log)


def prose(seed: int, lines: int = 30) -> str:
    random = Random(seed)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(200)]
    return "\n".join(" ".join(random.choices(words, k=12)) + "." for _ in range(lines))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """40 texts, exact and near copies of some, a JSONL and a Parquet file, and broken files of each kind."""
    root = tmp_path_factory.mktemp("texts")
    for number in range(40):
        (root / f"doc{number:02d}.txt").write_text(prose(number))
    (root / "sub").mkdir()
    for number in range(5):
        (root / "sub" / f"exact{number}.md").write_text("\r\n".join(prose(number).split("\n")) + "  \n")
        (root / "sub" / f"near{number}.txt").write_text(prose(10 + number) + "\nAnd one line more than the other has, at its very end.")
    (root / "short.txt").write_text("too short")
    (root / "prompt.txt").write_text(prose(99) + "\n{prompt}\n")
    (root / "binary.txt").write_bytes(b"abc\0def")
    (root / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    rows = [json.dumps({"text": prose(50)}), "{broken", json.dumps({"body": "x"}), "", json.dumps({"text": prose(51)})]
    (root / "rows.jsonl").write_text("\n".join(rows))
    parquet.write_table(pyarrow.table({"text": [prose(60), None, prose(61)]}), root / "rows.parquet")
    parquet.write_table(pyarrow.table({"body": ["x"]}), root / "other.parquet")
    (root / "fake.parquet").write_text("no parquet")
    (root / "ignored.png").write_bytes(b"\x89PNG")
    return root


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("run")
    first, _ = run(tmp_path, "draw", input=str(texts))
    prompt = read_rows(first / "tasks" / "rl.jsonl")[0]["messages"][0]["content"]
    path = texts / "prompt.txt"
    path.write_text(path.read_text().replace("{prompt}", f"  {prompt}"))
    directory, metrics = run(tmp_path, "first", input=str(texts))
    return directory, metrics, list(NOTES)


def test_planted_documents_are_removed_by_the_right_step(corpus):
    directory, metrics, _ = corpus
    removed = {key.removeprefix("removed_"): value for key, value in metrics.items() if key.startswith("removed_") and value}
    assert removed == {"exact_duplicates": 5, "near_duplicates": 5, "too_short": 1, "task_prompts": 1}
    report = json.loads((directory / "report.json").read_text())
    assert report["funnel"][0]["documents"] == 40 + 10 + 2 + 4
    assert metrics["documents"] + metrics["heldout_documents"] == 44
    samples = {step["step"]: step.get("samples", []) for step in report["funnel"]}
    assert samples["task_prompts"][0]["document"] == "input/prompt.txt"
    assert all("similar to input/" in sample["why"] for sample in samples["near_duplicates"])


def test_broken_files_are_told_by_name(corpus):
    directory, metrics, notes = corpus
    broken = json.loads((directory / "report.json").read_text())["input"]["broken"]
    assert {name.removeprefix("input/") for name in broken} == {
        "binary.txt", "latin.txt", "rows.jsonl:2", "rows.jsonl:3", "rows.parquet:2", "other.parquet", "fake.parquet"}
    assert metrics["broken_files"] == 7
    assert len([note for note in notes if note.startswith("left out input/")]) == 7


def test_tokens_are_the_documents(corpus):
    directory, metrics, _ = corpus
    tokenizer = load_tokenizer(directory / "tokenizer")
    heldout = [json.loads(line) for line in (directory / "heldout" / "text.jsonl").read_text().splitlines()]
    stored = read_indexed(directory / "tokens" / "heldout")
    assert [tokenizer.decode(ids[:-1]) for ids in stored] == [row["text"] for row in heldout]
    assert all(ids[-1] == 2 for ids in [*stored, *read_indexed(directory / "tokens" / "train")])
    assert sum(map(len, read_indexed(directory / "tokens" / "train"))) == metrics["tokens"]
    assert metrics["heldout_bytes"] == sum(len(row["text"].encode()) for row in heldout)
    assert json.loads((directory / "blend.json").read_text()) == {"train": [["tokens/train", 1.0]], "heldout": [["tokens/heldout", 1.0]]}


def test_task_files_share_no_prompt_and_demonstrations_are_described(corpus):
    directory, metrics, _ = corpus
    rows = {split: read_rows(directory / "tasks" / f"{split}.jsonl") for split in ("sft", "rl", "heldout")}
    keys = [prompt_key(row) for members in rows.values() for row in members]
    assert len(keys) == len(set(keys)) == 910 == sum(metrics[f"tasks_{split}"] for split in rows)
    families = json.loads((directory / "report.json").read_text())["tasks"]["families"]
    assert families.keys() == FAMILIES.keys()
    assert families["arithmetic"]["demonstrations_that_verify"] == 1
    assert all(families[name]["demonstrations_that_verify"] == pytest.approx(1 - families[name]["flawed_share"])
               for name in families if name != "arithmetic")


def test_two_runs_give_the_same_bytes_and_a_seed_other_tasks(texts, corpus, tmp_path):
    again, _ = run(tmp_path, "again", input=str(texts))
    other, _ = run(tmp_path, "other", input=str(texts), seed=1)
    digests = [{name: entry["sha256"] for name, entry in describe_files(directory).items()} for directory in (corpus[0], again, other)]
    assert digests[0] == digests[1]
    assert {name for name in digests[0] if digests[0][name] != digests[2][name]} >= {"tasks/sft.jsonl", "tasks/heldout.jsonl"}
    assert (tmp_path / "again" / "plots" / "funnel.svg").read_bytes() == (corpus[0].parent / "plots" / "funnel.svg").read_bytes()


def test_the_sample_is_bounded_and_the_system_has_text(tmp_path):
    directory, metrics = run(tmp_path, "system", sample_bytes=600_000)
    report = json.loads((directory / "report.json").read_text())
    assert 600_000 <= report["funnel"][0]["bytes"] < 2_000_000
    assert report["input"]["files_left_out"] > 0
    assert report["input"]["documents_by_source"].keys() == {"stdlib", "descriptions", "licences"}
    assert metrics["bytes_per_token"] > 1.5


def refused(tmp_path, **changes) -> str:
    with pytest.raises(UserError) as caught:
        run(tmp_path, "refused", **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_empty_inputs_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "absent: no such directory" in refused(tmp_path / "a", input=str(tmp_path / "absent"))
    assert "holds no .txt .md" in refused(tmp_path / "b", input=str(tmp_path / "empty"))
    (tmp_path / "empty" / "binary.txt").write_bytes(b"\0")
    assert "no readable text (input/binary.txt: binary" in refused(tmp_path / "c", input=str(tmp_path / "empty"))


def test_nothing_left_names_the_rule(tmp_path, texts):
    quality = {**VALUES["quality"], "min_characters": 50_000}
    assert "`too_short` removed most, 51 of 56" in refused(tmp_path, input=str(texts), quality=quality)


def test_too_little_text_for_the_vocabulary_or_the_split(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "only.txt").write_text(prose(1))
    assert "too few to hold out" in refused(tmp_path / "a", input=str(tmp_path / "one"))
    for number in range(30):
        (tmp_path / "one" / f"{number}.txt").write_text(prose(number + 2, lines=4))
    assert "of 60000 tokens" in refused(tmp_path / "b", input=str(tmp_path / "one"), vocab_size=60_000)


@pytest.mark.parametrize("changes, message", [
    ({"vocab_size": 100}, "vocab_size 100 is too small"),
    ({"tasks": {**VALUES["tasks"], "flawed": {"chess": 0.5}}}, "unknown task family 'chess'"),
    ({"tasks": {**VALUES["tasks"], "flawed": {}}}, "tasks.flawed"),
    ({"tasks": {**VALUES["tasks"], "flawed": {"sort": 1.5}}}, "tasks.flawed.sort: Input should be less than or equal to 1"),
    ({"tasks": {**VALUES["tasks"], "heldout_rows": 3}}, "fewer rows than the 6 task families"),
    ({"tasks": {**VALUES["tasks"], "flawed": {"sort": 0.5}, "sft_weights": {"tool": 1.0}}}, "sft_weights names 'tool'"),
    ({"tasks": {**VALUES["tasks"], "sft_weights": {"tool": 0.0}}}, "tasks.sft_weights.tool"),
    ({"heldout_share": 0.0}, "curate.heldout_share"), ({"typo": 1}, "curate.typo: unknown key"),
    ({"quality": {**VALUES["quality"], "min_letter_share": "0.6"}}, "curate.quality.min_letter_share"),
])
def test_impossible_parameters_are_one_line(changes, message):
    with pytest.raises(UserError) as caught:
        parameters(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_parameters_are_plain_data():
    assert json.loads(json.dumps(asdict(parameters()))) == VALUES
