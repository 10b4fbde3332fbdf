"""Every benchmark through lm-eval: the made ones, and the real ones on a few made-up rows in the format of their data."""

import json
import re
import shutil
import time

import pytest

from components.evaluate import benchmarks, harness
from components.evaluate.params import TASKS, Benchmarks
from components.evaluate.tasks import answers, haystack, instructions
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_atomic
from stagecraft.environments.constraints import CHECKS
from tests.evaluate.scripted import Chat
from tests.evaluate.test_episodes import AGENTIC

MADE = ("needle", "variable_tracking", "instructions")
SQUARE = {"task_id": "HumanEval/0", "prompt": "def square(x):\n    \"\"\"x times x\"\"\"\n", "canonical_solution": "    return x * x\n",
          "test": "def check(candidate):\n    assert candidate(3) == 9\n", "entry_point": "square"}
ROWS = {
    "gsm8k/train.jsonl": [{"question": f"1 + {i}?", "answer": f"1 + {i} = {1 + i}\n#### {1 + i}"} for i in range(5)],
    "gsm8k/test.jsonl": [{"question": "600 + 600?", "answer": "Add.\n#### 1,200"}, {"question": "7 - 4?", "answer": "#### 3"}],
    "math500/test.jsonl": [{"problem": "Half?", "answer": "\\frac{1}{2}", "subject": "Algebra"},
                           {"problem": "Two?", "answer": "2", "subject": "Algebra"}],
    "mmlu_pro/test.jsonl": [{"question": "Which is red?", "options": ["sky", "blood", "grass"], "answer": "B", "category": "biology"},
                            {"question": "Which is blue?", "options": ["sky", "blood", "grass"], "answer": "A", "category": "physics"}],
    "humaneval/test.jsonl": [SQUARE, {**SQUARE, "task_id": "HumanEval/1"}],
    "ifeval/train.jsonl": [
        {"key": 1, "prompt": "Answer without commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {"key": 2, "prompt": "Two words or more, and end with yes.",
         "kwargs": [{"num_words": 2, "relation": "at least"}, {"end_phrase": "yes"}],
         "instruction_id_list": ["length_constraints:number_words", "startend:end_checker"]}],
    "ruler/test-4096.jsonl": [{"index": i, "input": f"Where is {i}?", "outputs": [f"spot{i}", "here"], "length": 4096} for i in range(2)],
}
GPQA = """Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3
"How many, in all?",four,one,two,three
Which planet?,Mars,Venus,Earth,Saturn
"""
# What is said to each prompt, by what occurs in it; and the scores it must get, repeats apart.
SAID = {
    "gsm8k": ({"600 + 600": "600 + 600 = 1200\n#### $1,200.00", "7 - 4": "#### 4"}, [1.0, 0.0]),
    "math500": ({"Half": "It is \\boxed{\\frac12}.", "Two": "2"}, [1.0, 0.0]),
    "mmlu_pro": ({"red": "The answer is (B).", "blue": "Grass? No. Answer: C"}, [1.0, 0.0]),
    "gpqa": ({"in all": None, "planet": "No answer"}, [1.0, 0.0]),
    "ifeval": ({"commas": "one, two", "Two words": "I say YES"}, [0.0, 1.0]),
    "ruler": ({"is 0": "SPOT0, here", "is 1": "spot1"}, [1.0, 0.5]),
    "humaneval": ({"square": "```python\ndef square(x):\n    return x ** 2\n```"}, [1.0, 1.0]),
}


class Scripted(Chat):
    """Says what the script says; keeps what it was asked."""

    def __init__(self, script):
        super().__init__()
        self.script, self.asked = script, []

    def generate_until(self, requests, disable_tqdm=False):
        said = []
        for request in requests:
            messages = [message for message in json.loads(request.args[0].prompt) if message["role"] != benchmarks.REQUEST]
            self.asked.append(json.loads(request.args[0].prompt))
            text = next(text for key, text in self.script.items() if key in messages[-1]["content"])
            said.append(text if text is not None else f"Answer: {re.search(r'[(]([A-D])[)] four', messages[-1]['content'])[1]}")
        return said


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        write_atomic(folder / name, "".join(json.dumps(row) + "\n" for row in rows))
    write_atomic(folder / "gpqa" / "gpqa_diamond.csv", GPQA)
    return folder


def settings(data="", prompts=10, lengths=(40, 80)):
    return Benchmarks(tasks=[], data=str(data), prompts=prompts, lengths=list(lengths), max_new_tokens=8)


@pytest.mark.parametrize("name", SAID)
def test_a_real_benchmark_judges_made_up_rows(name, data):
    if name == "humaneval" and shutil.which("bwrap") is None:
        with pytest.raises(UserError, match="runs in a sandbox only"):
            harness.run(Scripted(SAID[name][0]), {name: benchmarks.load(name, settings(data), 0)})
        return
    script, expected = SAID[name]
    task = benchmarks.load(name, settings(data), 0)
    model = Scripted(script)
    found = harness.run(model, {name: task})[name]
    assert found["scores"] == [[score] * task.repeats for score in expected]
    seeds = [message["seed"] for asked in model.asked for message in asked if message["role"] == benchmarks.REQUEST]
    sampled = task.config.generation_kwargs["temperature"] > 0
    assert seeds == (list(range(task.repeats)) * 2 if sampled else [])


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="programs run in the sandbox alone")
@pytest.mark.parametrize("answer", ["    return [x // 2 for x in xs]\n",
                                    "```python\ndef halved(xs: List[int]):\n    return [x // 2 for x in xs]\n```"])
def test_a_function_has_the_imports_and_helpers_of_its_prompt(answer):
    """As in HumanEval/38, whose test calls the function above the one that is asked for."""
    prompt = "from typing import List\n\n\ndef doubled(xs: List[int]):\n    return [2 * x for x in xs]\n\n\ndef halved(xs: List[int]):\n" \
             '    """undoes doubled"""\n'
    document = {"prompt": prompt, "entry_point": "halved", "test": "def check(candidate):\n    assert candidate(doubled([3])) == [3]\n"}
    assert answers.programs(document, [answer]) == {"passed": 1.0}
    assert answers.programs(document, [answer.replace("//", "-")]) == {"passed": 0.0}


def test_every_task_is_tested_and_none_downloads(monkeypatch):
    assert {path.stem for path in TASKS.glob("*.yaml")} == {*MADE, *SAID, *AGENTIC, "families"}
    for name in SAID:
        with pytest.raises(UserError, match="put the data there"):
            benchmarks.load(name, settings("/nowhere"), 0)


def test_rulers_rows_are_divided_by_the_length_they_were_made_for(tmp_path):
    """Its scripts write down what each row really has."""
    rows = [{"index": i, "input": f"Where is {i}?", "outputs": ["here"], "length": length}
            for i, length in enumerate([4050, 4096, 4097, 8101])]
    write_atomic(tmp_path / "ruler" / "test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = harness.run(Scripted({"Where": "here"}), {"ruler": benchmarks.load("ruler", settings(tmp_path), 0)})["ruler"]
    assert found["strata"] == ["4096 tokens", "4096 tokens", "8192 tokens", "8192 tokens"]


def test_few_shot_examples_come_from_the_training_rows(data):
    model = Scripted(SAID["gsm8k"][0])
    harness.run(model, {"gsm8k": benchmarks.load("gsm8k", settings(data), 0)})
    assert [message["role"] for message in model.asked[0]] == ["user", "assistant"] * 5 + ["user"]
    assert "#### 1" in model.asked[0][1]["content"]


def obey(document):
    """An answer that meets the constraints that are made."""
    asked = {name.partition(":")[2]: arguments for name, arguments in zip(document["instruction_id_list"], document["kwargs"])}
    text = "\n".join(["- so"] * asked["number_bullet_lists"]["num_bullets"]) if "number_bullet_lists" in asked else "so"
    if "existence" in asked:
        text += " " + asked["existence"]["keywords"][0]
    if "end_checker" in asked:
        text += " " + asked["end_checker"]["end_phrase"]
    return f'"{text}"' if "quotation" in asked else text


@pytest.mark.parametrize("name", MADE)
def test_made_tasks_are_solved_by_who_knows_the_answer_and_by_no_other(name):
    task = benchmarks.load(name, settings(), 3)
    if name == "instructions":  # the longest prompt first: another may be its beginning
        knowing = {doc["prompt"]: obey(doc) for doc in sorted(task.eval_docs, key=lambda doc: -len(doc["prompt"]))}
        strata, ignorance = {"1 constraint", "2 constraints"}, " "
    else:
        knowing = {json.loads(json.dumps(doc["context"])): " ".join(doc["answers"]) for doc in task.eval_docs}
        strata, ignorance = {"40 words", "80 words"}, "I do not know"
    found = harness.run(Scripted(knowing), {name: task})[name]
    assert found["scores"] == [[1.0]] * 10
    assert set(found["strata"]) == strata
    nothing = harness.run(Scripted({"": ignorance}), {name: benchmarks.load(name, settings(), 3)})[name]
    assert nothing["scores"] == [[0.0]] * 10
    assert nothing["digest"] == found["digest"] != harness.run(
        Scripted({"": ""}), {name: benchmarks.load(name, settings(), 4)})[name]["digest"]


def test_haystacks_have_the_length_and_the_depth_asked_for():
    documents = haystack.needles(lengths=[60, 300], prompts=20, seed=0, distractors=2)["test"]
    for document in documents:
        wanted = int(document["stratum"].split()[0])
        assert wanted - 6 <= len(document["context"].split()) <= wanted
        assert document["context"].count(document["answers"][0]) == 1
    deepest = [document for document in documents if document["depth"] == 1.0]
    assert deepest
    assert all(document["context"].endswith(f"is {document['answers'][0]}.") for document in deepest)
    for document in haystack.chains(lengths=[80], prompts=5, seed=0, hops=3)["test"]:
        values, names = {}, document["answers"]
        for name, source in re.findall(r"VAR (\w+) = (\w+)\.", document["context"]):
            values[name] = values.get(source, source)  # by execution, in the order of the text
        assert sorted(name for name, value in values.items() if value == document["value"]) == sorted(names)
        assert len(names) == 4


follow = instructions.follows
CONSTRAINTS = [
    ("punctuation:no_comma", {}, "a b", True), ("punctuation:no_comma", {}, "a, b", False), ("punctuation:no_comma", {}, " ", False),
    ("keywords:existence", {"keywords": ["Cat", "dog"]}, "a cat and a dog", True),
    ("keywords:existence", {"keywords": ["cat"]}, "cats", False),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A CAT", False),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "a b a", True),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "less than"}, "a b a", False),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 1, "let_relation": "less than"}, "abc", True),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", True),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "One. Two!", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one *** two", True),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"}, "A\n\nthen b", True),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye\nP.S. x", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "- a\n* b", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "- a\n**b**\n", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", True),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1\nx\nPart 2\ny", True),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', True), ("detectable_format:json_format", {}, "{a", False),
    ("detectable_format:title", {}, "<<A title>>\nx", True), ("detectable_format:constrained_response", {}, "My answer is no.", True),
    ("combination:two_responses", {}, "a ****** b", True), ("combination:two_responses", {}, "a ****** a", False),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Do it"}, "do it: done", True),
    ("startend:quotation", {}, '"all"', True), ("startend:quotation", {}, '"', False),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "AN OK one", True),
    ("change_case:english_lowercase", {}, "the house is near the river", True),
    ("change_case:english_capital", {}, "THE HOUSE IS NEAR THE RIVER", True),
    ("change_case:english_lowercase", {}, "das haus steht neben dem fluss und ist alt", False),
    ("language:response_language", {"language": "de"}, "Das Haus steht neben dem Fluss.", True),
]


@pytest.mark.parametrize(("key", "arguments", "text", "wanted"), CONSTRAINTS)
def test_a_constraint_is_met_or_not(key, arguments, text, wanted):
    assert follow({"instruction_id_list": [key], "kwargs": [arguments]}, [text])["prompt_level"] == wanted


@pytest.mark.parametrize("flood", ["\n", "\n \n", "<<"])
def test_a_flood_of_blank_lines_or_of_beginnings_is_read_in_no_time(flood):
    started = time.process_time()
    kinds = ("detectable_content:postscript", "detectable_format:number_bullet_lists", "detectable_format:title")
    arguments = [{"postscript_marker": "P.S."}, {"num_bullets": 2}, {}]
    assert follow({"instruction_id_list": kinds, "kwargs": arguments}, ["x" + flood * 15_000])["instruction_level"] == 0
    assert time.process_time() - started < 1


def test_every_constraint_has_a_case():
    assert {key for key, *_ in CONSTRAINTS} | {"startend:end_checker"} == set(CHECKS)


def test_made_constraints_can_be_met_and_say_what_they_check():
    for document in instructions.constraints(prompts=60, seed=1)["test"]:
        assert set(document["instruction_id_list"]) <= set(CHECKS)
        assert document["prompt"].startswith("Say something about a ")
        for arguments in document["kwargs"]:
            for value in arguments.values():
                shown = value[0] if isinstance(value, list) else str(value)
                assert shown in document["prompt"] or shown == "less than"


def test_data_that_cannot_be_read_is_one_line(tmp_path):
    write_atomic(tmp_path / "ruler" / "test.jsonl", "{\n")
    with pytest.raises(UserError, match=r"test.jsonl: cannot read"):
        benchmarks.load("ruler", settings(tmp_path), 0)
    write_atomic(tmp_path / "ruler" / "test.jsonl", json.dumps(ROWS["ruler/test-4096.jsonl"][0]) + "\n")
    with pytest.raises(UserError, match="1 prompts, a standard error needs two"):
        benchmarks.load("ruler", settings(tmp_path), 0)
