"""The whole stage on a small directory: what is kept, what is told, and that two runs are one."""

import json
import shutil
from dataclasses import asdict
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pyarrow
import pytest
from pyarrow import parquet

from components.curate.document import identify
from components.curate.stage import Params, main
from stagecraft.cli.lineage import main as lineage
from stagecraft.cli.lineage import passed
from stagecraft.contract.errors import UserError
from stagecraft.contract.manifest import describe_files
from stagecraft.contract.params import parse
from stagecraft.contract.runlog import RunLog
from stagecraft.data.decontamination import EvaluationIndex
from stagecraft.data.indexed import read_indexed
from stagecraft.data.lineage import document_at
from stagecraft.data.scan import scan
from stagecraft.data.tasks import FAMILIES, prompt_key, read_rows
from stagecraft.data.tokenizer import load_tokenizer

PHASE = {"tokens": 100_000, "categories": {}, "tiers": [1, 1, 1, 1, 1]}
SYNTHETIC = {"documents": {}, "sft_rows": 0, "rl_rows": 0, "endpoint": {
    "url": "", "model": "", "key_variable": "", "temperature": 0.8, "max_tokens": 1000, "concurrency": 2, "timeout_seconds": 5.0,
    "max_retries": 2}}
VALUES = {
    "seed": 0, "input": "system", "sample_bytes": 10_000_000, "shards": 3, "executor": "local", "workers": 1, "memory_bytes": 100_000_000,
    "slurm": {"partition": "cpu", "time": "1:00:00", "qos": "", "cpus_per_task": 1, "memory_gb": 2, "tasks_per_job": 1,
              "max_array_size": 1001, "sbatch": {}, "setup": ""},
    "max_document_bytes": 100_000, "synthetic": SYNTHETIC, "benchmarks": "", "languages": [], "min_language_probability": 0.6,
    "quality": {"min_characters": 100, "max_characters": 100_000, "max_line_characters": 2000, "min_letter_share": 0.6,
                "min_ascii_share": 0.97, "max_repeated_share": 0.3},
    "rules": {"families": [], "bounds": {}}, "near_duplicate_similarity": 0.75, "substring_min_tokens": 0, "seeds": "default",
    "blend": {"max_epochs": 4, "phase1": PHASE, "phase2": {**PHASE, "tiers": [1, 1, 1, 2, 3]},
              "long_min_characters": 2000, "long_share": 0.2},
    "heldout_share": 0.1, "tokenizer": "train", "vocab_size": 512, "reserved_tokens": 0, "tokenizer_bytes": 1_000_000, "max_length": 256,
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
    for part in ("corpus", "plots", "curate/work"):
        (tmp_path / name / part).mkdir(parents=True)
    NOTES.clear()
    log = RunLog("curate", tmp_path / name / "plots", tmp_path / name / "curate" / "work", [Notes()])
    return tmp_path / name / "corpus", main(parameters(**changes), {}, {"corpus": tmp_path / name / "corpus"}, log)


def rerun(tmp_path: Path, name: str, **changes) -> tuple[Path, dict[str, float]]:
    """As `run`, with what an earlier run left in the cache."""
    (tmp_path / name / "cache").rename(tmp_path / "cache")
    shutil.rmtree(tmp_path / name)
    (tmp_path / name).mkdir()
    (tmp_path / "cache").rename(tmp_path / name / "cache")
    return run(tmp_path, name, **changes)


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


def funnel_of(directory: Path) -> dict[str, dict]:
    return {step["step"]: step for step in json.loads((directory / "report.json").read_text())["funnel"]}


def test_planted_documents_are_removed_by_the_right_step(corpus):
    directory, metrics, _ = corpus
    funnel = funnel_of(directory)
    removed = {entry["reason"]: entry["documents"] for step in funnel.values() for entry in step["removed"]}
    assert removed == {"exact_duplicates": 5, "near_duplicates": 5, "too_short": 2, "in_rl": 1}
    assert funnel["normalise"]["documents_in"] == 40 + 10 + 2 + 5
    assert metrics["documents"] + metrics["heldout_documents"] == 44
    samples = {entry["reason"]: entry["samples"] for step in funnel.values() for entry in step["removed"]}
    assert samples["in_rl"][0]["document"].endswith("prompt.txt") and prose(99)[:80] in samples["in_rl"][0]["text"]
    assert all("similar to" in sample["why"] for sample in samples["near_duplicates"])
    steps = list(funnel.values())
    assert all(one["documents_out"] == two["documents_in"] for one, two in pairwise(steps))


def test_held_out_text_shares_nothing_with_what_is_trained_on(texts, corpus, tmp_path):
    """A licence at the head of every document would tie them all; the held-out ones lose it, and no other loses anything."""
    mine = tmp_path / "texts"
    shutil.copytree(texts, mine)
    licence = "\n".join(prose(300, 4).split("\n"))
    for path in mine.glob("doc*.txt"):
        path.write_text(f"{licence}\n\n{path.read_text()}")
    (mine / "all.txt").write_text("\n".join(path.read_text() for path in sorted(mine.glob("doc1*.txt"))))
    directory, metrics = run(tmp_path, "apart", input=str(mine), heldout_share=0.4, near_duplicate_similarity=1.0)
    rows = [json.loads(line) for line in (directory / "heldout" / "text.jsonl").read_text().splitlines()]
    assert len(rows) == metrics["heldout_documents"] > 5
    step = funnel_of(directory)["heldout_overlap"]
    report = json.loads((directory / "report.json").read_text())
    assert step["counts"]["documents cut"] + metrics["removed_heldout_overlap"] == len(report["heldout_overlaps"]) > 5
    assert metrics["heldout_bytes"] == sum(len(row["text"].encode()) for row in rows)
    assert metrics["bytes"] + metrics["heldout_bytes"] == step["bytes_out"]
    index = EvaluationIndex.build({"heldout": [row["text"] for row in rows]})
    tokenizer = load_tokenizer(directory / "tokenizer")
    trained = [tokenizer.decode(list(tokens)) for path in (directory / "tokens").glob("*-tier*.bin")
               for tokens in read_indexed(path.with_suffix(""))]
    assert trained and not any(index.shared(scan(text)).size for text in trained)
    assert any(licence in text for text in trained) and not any(licence in row["text"] for row in rows)
    assert report["heldout_overlaps"][0]["other"] in (directory / "report.html").read_text()


def test_benchmarks_at_hand_are_kept_out_of_training(texts, corpus, tmp_path):
    data = tmp_path / "data"
    (data / "mmlu").mkdir(parents=True)
    question = {"subject": "a", "nested": [{"question": " ".join(prose(23).split()[40:60])}]}
    (data / "mmlu" / "test.jsonl").write_text(json.dumps(question) + "\n")
    (data / "mmlu" / "train.jsonl").write_text(json.dumps({"question": prose(24)}) + "\n")
    parquet.write_table(pyarrow.table({"prompt": [prose(25)[:200], "short one"]}), data / "coding.parquet")
    (data / "names.jsonl").write_text(json.dumps({"name": "too short"}) + "\n")
    directory, _ = run(tmp_path, "clean", input=str(texts), benchmarks=str(data))
    removed = {entry["reason"]: entry["documents"] for entry in funnel_of(directory)["decontaminate"]["removed"]}
    assert {name: removed[name] for name in ("in_mmlu", "in_coding")} == {"in_mmlu": 1, "in_coding": 1}
    assert [note for note in NOTES if "kept out" in note] == [
        "no text of names is kept out of training: none of its strings has the eight words that tell it from any other text"]
    (data / "mmlu" / "test.jsonl").write_text("{broken")
    with pytest.raises(UserError, match=r"test\.jsonl: cannot read"):
        run(tmp_path, "broken", input=str(texts), benchmarks=str(data))
    with pytest.raises(UserError, match=r"no \.parquet, \.jsonl, \.csv file of a benchmark"):
        run(tmp_path, "none", input=str(texts), benchmarks=str(tmp_path / "nowhere"))


def test_repeated_passages_are_cut_but_once_and_the_account_adds_up(texts, corpus, tmp_path):
    mine = tmp_path / "texts"
    shutil.copytree(texts, mine)
    passage = " ".join(prose(70).split()[:60])
    for number, name in enumerate(("doc05.txt", "doc25.txt", "doc35.txt", "sub/near0.txt")):
        (mine / name).write_text(f"{prose(80 + number)}\n{passage}\n{number} is the last line.\n")
    (mine / "only.txt").write_text(f"{passage}\nShort.\n")
    directory, metrics = run(tmp_path, "cut", input=str(mine), substring_min_tokens=50)
    step = funnel_of(directory)["repeated_substrings"]
    assert step["documents_in"] - step["documents_out"] == metrics["removed_repeated_substrings"]
    assert metrics["documents"] + metrics["heldout_documents"] == step["documents_out"]
    assert metrics["bytes"] + metrics["heldout_bytes"] == step["bytes_out"]
    left = texts_of(directory)
    assert sum(text.count(passage) for text in left.values()) == 1
    held = {identifier for identifier, text in left.items() if "is the last line" in text}
    assert len(held) == 4 and passage in left[min(held)] and identify("input", "only.txt") not in left
    assert {entry["reason"]: entry["documents"] for entry in step["removed"]} == {"repeated_substrings": 0, "too_short_without_repeats": 1}
    assert step["counts"] == {"documents cut": 3, "passages": 3}
    assert all(passage[:150] in entry["samples"][0]["text"] for entry in step["removed"])
    assert {record["id"] for record in records_of(directory) if record["cut_bytes"]} == held - {min(held)}
    one, _ = run(tmp_path, "one", input=str(mine), substring_min_tokens=50, shards=1, memory_bytes=3000)
    assert texts_of(one) == left


def texts_of(directory: Path) -> dict[str, str]:
    """id -> text of every document, held out or not."""
    tokenizer = load_tokenizer(directory / "tokenizer")
    files = [path.with_suffix("") for path in (directory / "tokens").glob("*.bin") if path.stem != "long-document-qa"]
    records = {file: parquet.read_table(f"{file}.documents.parquet")["id"].to_pylist() for file in files}
    return {identifier: tokenizer.decode(ids[:-1]) for file in files for identifier, ids in zip(records[file], read_indexed(file))}


def records_of(directory: Path) -> list[dict]:
    return [row for file in (directory / "tokens").glob("*.parquet") if "long-document" not in file.name
            for row in parquet.read_table(file).to_pylist()]


def test_lineage_tells_what_each_document_was_subject_to(texts, corpus, capsys):
    directory, _, _ = corpus
    told = {}
    for record in records_of(directory):
        file = next(path for path in (directory / "tokens").glob("*.parquet") if "long-document" not in path.name
                    and record["id"] in parquet.read_table(path)["id"].to_pylist())
        ids = parquet.read_table(file).to_pylist()
        position = sum(row["tokens"] for row in ids[:[row["id"] for row in ids].index(record["id"])])
        prefix = file.name.removesuffix(".documents.parquet")
        lineage(["--corpus", str(directory), "--file", f"tokens/{prefix}", "--position", str(position)])
        told["/".join(filter("input".__ne__, (record["source"], record["path"])))] = json.loads(capsys.readouterr().out)
    assert len(told) == len(records_of(directory))
    report = json.loads((directory / "report.json").read_text())
    steps = [step["step"] for step in report["funnel"] if step["step"] != "label"]
    for path, answer in told.items():
        assert ":" in path or answer["digest"] == sha256((texts / path).read_bytes().decode(encoding(path)).encode()).hexdigest()
        assert list(answer["passed"]) == steps and path.endswith(answer["path"])
        assert answer["language"] != "code" and 0 <= answer["language_probability"] <= 1 and answer["cut_bytes"] == 0
    stands = {path: sorted(each["document"] for each in answer["stands_for"]) for path, answer in told.items() if answer["stands_for"]}
    pairs = [{f"doc{number:02d}.txt", f"sub/exact{number}.md"} for number in range(5)]
    pairs += [{f"doc{number + 10}.txt", f"sub/near{number}.txt"} for number in range(5)]
    sets = [{path, *(name.removeprefix("input/") for name in names)} for path, names in stands.items()]
    assert sorted(map(sorted, sets)) == sorted(map(sorted, pairs))
    assert all(each["similarity"] == 1 if "exact" in str(pair) else each["similarity"] < 1
               for path, answer in told.items() for each in answer["stands_for"] for pair in [(path, each["document"])])


def encoding(path: str) -> str:
    return "latin-1" if path.startswith("latin") else "utf-8"


def test_code_is_subject_to_no_rule_for_prose(tmp_path):
    report = {"rules": [{"step": "language", "all": [], "text": ["one of en"]}, {"step": "quality", "all": ["a"], "text": ["gopher: b"]}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert passed(tmp_path, {"language": "code"}) == {"quality": ["a"]}
    assert passed(tmp_path, {"language": "en"}) == {"language": ["one of en"], "quality": ["a", "gopher: b"]}
    report["rules"][1].update(text=["repetition: b"], english=["gopher: c"], sure=0.6)
    (tmp_path / "report.json").write_text(json.dumps(report))
    for language, probability, english in (("en", 0.9, True), ("de", 0.5, True), ("und", 0.0, True), ("de", 0.6, False),
                                           ("code", None, False)):
        rules = passed(tmp_path, {"language": language, "language_probability": probability})["quality"]
        assert ("gopher: c" in rules) == english and ("repetition: b" in rules) == (language != "code")
    report["rules"][1]["exempt"] = "made"
    (tmp_path / "report.json").write_text(json.dumps(report))
    for source, wanted in (("made", ["a"]), ("web", ["a", "repetition: b", "gopher: c"])):
        assert passed(tmp_path, {"language": "en", "language_probability": 0.9, "source": source})["quality"] == wanted
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"no report\.json with the rules"):
        passed(tmp_path, {"language": "en"})


def test_a_given_tokenizer_is_taken_as_it_is(texts, corpus, tmp_path):
    given = corpus[0] / "tokenizer"
    directory, _ = run(tmp_path, "given", input=str(texts), tokenizer=str(given), shards=1)
    assert digests(directory / "tokenizer") == digests(given)
    assert texts_of(directory) == texts_of(corpus[0])
    assert f"{given}: the tokenizer has 512 tokens, curate.vocab_size says 600 - set curate.vocab_size to 512" in refused(
        tmp_path / "size", input=str(texts), tokenizer=str(given), vocab_size=600)
    assert "no tokenizer.json" in refused(tmp_path / "none", input=str(texts), tokenizer=str(tmp_path))


def test_bytes_per_token_are_told_by_category(corpus):
    report = json.loads((corpus[0] / "report.json").read_text())
    for category, counts in report["categories"].items():
        files = [file for name, file in report["token_files"].items() if name.startswith(f"tokens/{category}-tier")]
        assert counts["bytes"] == sum(file["bytes"] for file in files) and counts["tokens"] == sum(file["tokens"] for file in files)
        assert counts["bytes_per_token"] == pytest.approx(counts["bytes"] / (counts["tokens"] - counts["documents"]), abs=1e-4)
    assert sum(counts["tokens"] for counts in report["categories"].values()) == corpus[1]["tokens"]


def test_broken_files_are_told_by_name(corpus):
    directory, metrics, notes = corpus
    broken = json.loads((directory / "report.json").read_text())["input"]["broken"]
    assert {Path(name).name for name in broken} == {
        "binary.txt", "rows.jsonl:2", "rows.jsonl:3", "rows.parquet:2", "other.parquet", "fake.parquet"}
    assert metrics["broken_files"] == 6
    assert len([note for note in notes if note.startswith("left out ")]) == 6


def test_tokens_are_the_documents_and_the_records_say_which(corpus):
    directory, metrics, _ = corpus
    tokenizer = load_tokenizer(directory / "tokenizer")
    heldout = [json.loads(line) for line in (directory / "heldout" / "text.jsonl").read_text().splitlines()]
    stored = read_indexed(directory / "tokens" / "heldout")
    assert [tokenizer.decode(ids[:-1]) for ids in stored] == [row["text"] for row in heldout]
    assert metrics["heldout_bytes"] == sum(len(row["text"].encode()) for row in heldout)
    blends = json.loads((directory / "blend.json").read_text())
    assert blends.keys() == {"phase1", "phase2", "long", "heldout"}
    assert all(sum(weight for _, weight in entries) == pytest.approx(1) for entries in blends.values())
    assert dict(blends["long"])["tokens/long-document-qa"] == 0.2
    files = sorted(path.with_suffix("") for path in (directory / "tokens").glob("*-tier?.bin"))
    assert sum(len(ids) for file in files for ids in read_indexed(file)) == metrics["tokens"]
    for file in [*files, directory / "tokens" / "heldout"]:
        position = 0
        for ids in read_indexed(file):
            assert ids[-1] == 2
            record, offset = document_at(file, position + len(ids) - 1)
            assert offset == len(ids) - 1 and record["tokens"] == len(ids)
            position += len(ids)
    ids = {record["id"] for record in map(json.loads, (directory / "heldout" / "text.jsonl").read_text().splitlines())}
    assert not ids & {document_at(file, 0)[0]["id"] for file in files}


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


def digests(directory: Path) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in describe_files(directory).items()}


def test_runs_shards_and_workers_do_not_show_and_a_seed_gives_other_tasks(texts, corpus, tmp_path):
    again, _ = run(tmp_path, "again", input=str(texts), workers=2)
    other, _ = run(tmp_path, "other", input=str(texts), seed=1)
    first = digests(corpus[0])
    assert first == digests(again)
    assert {name for name, digest in first.items() if digest != digests(other)[name]} >= {"tasks/sft.jsonl", "tasks/heldout.jsonl"}
    assert (tmp_path / "again" / "plots" / "funnel.svg").read_bytes() == (corpus[0].parent / "plots" / "funnel.svg").read_bytes()
    one, _ = run(tmp_path, "one", input=str(texts), shards=1)
    kept = [{row["id"] for file in (directory / "tokens").glob("*.parquet") for row in parquet.read_table(file).to_pylist()}
            for directory in (corpus[0], one)]
    assert kept[0] == kept[1]


def results(tmp_path: Path, name: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / name / "cache" / "curate").iterdir() if path.name[0] != "."
            and path.is_dir() and path.name != "plans"}


def test_a_removed_document_touches_its_shard_alone(texts, tmp_path):
    mine = tmp_path / "texts"
    shutil.copytree(texts, mine)
    run(tmp_path, "kept", input=str(mine))
    before = results(tmp_path, "kept")
    (mine / "doc20.txt").unlink()
    (tmp_path / "kept" / "corpus").rename(tmp_path / "former")
    directory, _ = rerun(tmp_path, "kept", input=str(mine))
    after = results(tmp_path, "kept")
    assert len(before) == len(after) == 3 and len(before.items() & after.items()) == 2
    assert "1 of 3 shards worked through" in "\n".join(NOTES)
    fresh, _ = run(tmp_path, "fresh", input=str(mine))
    assert digests(fresh) == digests(directory)


def test_the_sample_is_bounded_and_the_system_has_text(tmp_path):
    directory, metrics = run(tmp_path, "system", sample_bytes=600_000, blend={**VALUES["blend"], "long_share": 0.0})
    report = json.loads((directory / "report.json").read_text())
    assert 300_000 <= report["funnel"][0]["bytes_in"] < 2_000_000
    assert report["input"]["files_left_out"] > 0
    assert report["input"]["documents_by_source"].keys() == {"stdlib", "descriptions", "licences"}
    assert metrics["bytes_per_token"] > 1.5
    page = ElementTree.parse(directory / "report.html")
    assert "documents" in "".join(page.getroot().itertext())


def refused(tmp_path, **changes) -> str:
    with pytest.raises(UserError) as caught:
        run(tmp_path, "refused", **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_empty_inputs_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "absent: no such directory" in refused(tmp_path / "a", input=str(tmp_path / "absent"))
    assert "holds no file of a known kind (.c" in refused(tmp_path / "b", input=str(tmp_path / "empty"))
    (tmp_path / "empty" / "binary.txt").write_bytes(b"\0")
    assert "no readable text (input/binary.txt: binary" in refused(tmp_path / "c", input=str(tmp_path / "empty"))


def test_a_language_that_no_text_is_found_to_be_in_is_told(tmp_path):
    assert refused(tmp_path, languages=["en", "english"]).startswith("curate.languages: 'english' is none of the 176 languages")


def test_nothing_left_names_the_rule(tmp_path, texts):
    quality = {**VALUES["quality"], "min_characters": 50_000}
    assert "`too_short` removed most, 57 of 57" in refused(tmp_path, input=str(texts), quality=quality)


def test_too_little_text_for_the_vocabulary_or_the_split(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "only.txt").write_text(prose(1))
    assert "too few to hold out" in refused(tmp_path / "a", input=str(tmp_path / "one"))
    for number in range(30):
        (tmp_path / "one" / f"{number}.txt").write_text(prose(number + 2, lines=4))
    assert "of 60000 tokens" in refused(tmp_path / "b", input=str(tmp_path / "one"), vocab_size=60_000)


@pytest.mark.parametrize("changes, message", [
    ({"vocab_size": 100}, "vocab_size 100 is too small"), ({"reserved_tokens": 300}, "vocab_size 512 is too small"),
    ({"executor": "cloud"}, "curate.executor"), ({"slurm": {**VALUES["slurm"], "partition": ""}}, "curate.slurm.partition"),
    ({"substring_min_tokens": -1}, "curate.substring_min_tokens"),
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
