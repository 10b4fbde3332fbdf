"""What is asked: even over families, the same for the same seed, and mistakes in the input said in one line."""

from collections import Counter
from dataclasses import asdict, replace

import pytest

from components.evaluate.params import Params
from components.evaluate.protocol import precision_of
from components.evaluate.workload import choose
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_json
from stagecraft.contract.params import parse
from tests.evaluate.conftest import PARAMS


def test_families_share_the_prompts_evenly(corpus):
    chosen = choose(corpus, replace(PARAMS, tasks=replace(PARAMS.tasks, prompts=8)))
    assert sorted(Counter(row["family"] for row in chosen.rows).values()) == [2, 3, 3]
    everything = choose(corpus, replace(PARAMS, tasks=replace(PARAMS.tasks, prompts=1000)))
    assert len(everything.rows) == 20


def test_documents_are_clipped_and_enough(corpus):
    documents = choose(corpus, PARAMS).documents
    sizes = [len(document["text"].encode()) for document in documents]
    assert max(sizes) <= PARAMS.text.document_bytes
    assert sum(sizes[:-1]) < PARAMS.text.bytes <= sum(sizes)
    assert {document["whole"] for document in documents} == {True, False}


def test_the_seed_decides(corpus):
    assert choose(corpus, PARAMS) == choose(corpus, PARAMS)
    assert choose(corpus, PARAMS).documents != choose(corpus, replace(PARAMS, seed=8)).documents


def test_too_little_text_is_a_mistake_of_the_user(corpus):
    with pytest.raises(UserError, match="1 documents, a standard error needs two"):
        choose(corpus, replace(PARAMS, text=replace(PARAMS.text, bytes=1)))


def test_a_family_of_one_prompt_is_a_mistake_of_the_user(corpus):
    with pytest.raises(UserError, match=r"heldout\.jsonl: 1 task rows of family '\w+', a standard error needs two - "):
        choose(corpus, replace(PARAMS, tasks=replace(PARAMS.tasks, prompts=5)))


def test_no_corpus_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(UserError, match="cannot read task rows"):
        choose(tmp_path, PARAMS)


@pytest.mark.parametrize(("path", "value", "message"), [
    ("text.overlap", 48, "overlap must be below window"),
    ("text.window", 160, "must be below max_model_len"),
    ("gate.candidates", ["base"], "'base' cannot be promoted"),
    ("gate.confidence", 0.4, "greater than 0.5"),
    ("pass_at_k.models", ["gpt"], "'gpt' is no model of this pipeline"),
    ("dtype", "int8", "none of float32"),
    ("processes", "2", "valid integer"),
    ("benchmarks.tasks", ["glue"], "'glue' is no task; they are families, gpqa, gsm8k"),
    ("benchmarks.max_new_tokens", 160, "must be below max_model_len"),
    ("benchmarks.prompts", 1, "prompts is 1, a standard error needs two"),
    ("gate.other_protocol", "ask", "'refuse', 'replace_gone' or 'replace'"),
    ("tasks.shots", 5, "unknown key"),
])
def test_impossible_parameters_are_named(path, value, message):
    data = asdict(PARAMS)
    *parents, key = path.split(".")
    section = data
    for parent in parents:
        section = section[parent]
    section[key] = value
    with pytest.raises(UserError, match=message):
        parse(Params, data, "evaluate")


def test_precision_is_read_from_the_checkpoint(tmp_path):
    write_json(tmp_path / "config.json", {"dtype": "float32"})
    assert precision_of(tmp_path) == "float32"
    layers = {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "NVFP4", "group_size": 16}}
    write_json(tmp_path / "hf_quant_config.json", {"quantization": {
        "quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8", "quantized_layers": layers}})
    assert precision_of(tmp_path) == "fp8+nvfp4, kv fp8"
    write_json(tmp_path / "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}})
    assert precision_of(tmp_path) == "fp8"
    (tmp_path / "hf_quant_config.json").write_text("{")
    with pytest.raises(UserError, match=r"hf_quant_config.json: not the configuration"):
        precision_of(tmp_path)
