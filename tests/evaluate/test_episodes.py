"""Agentic benchmarks: solved by who knows the way and by no other, through lm-eval, through vLLM, and over an OpenAI endpoint."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest

from components.evaluate import benchmarks, harness
from components.evaluate.engine_lm import EngineLM
from components.evaluate.episodes import play
from components.evaluate.params import Benchmarks
from components.evaluate.side_by_side.endpoint import Endpoint
from stagecraft.data.tokenizer import IM_END, load_tokenizer
from stagecraft.environments import confinement
from stagecraft.environments.episode import conversation
from stagecraft.environments.items import items_of
from stagecraft.environments.library import ENVIRONMENTS
from stagecraft.environments.written import write_call
from stagecraft.inference.engine import Engine
from tests.evaluate.scripted import Chat
from tests.serve.parrot import parrot

AGENTIC = ("warehouse", "sql", "software")
HOUSE = ENVIRONMENTS["warehouse"]
LOOK = write_call("look", room="hall")


def task(name, prompts=3):
    return benchmarks.load(name, Benchmarks(tasks=[], data="", prompts=prompts, lengths=[10], max_new_tokens=8), 0)


class Scripted(Chat):
    """Says what is written for a row, line by line, and then nothing; keeps how many conversations took each turn."""

    def __init__(self, lines):
        super().__init__()
        self.lines, self.together = lines, []

    def generate_until(self, requests, disable_tqdm=False):
        return play(requests, self.say)

    def say(self, requests, turn):
        self.together.append(len(requests))
        return [dict(enumerate(self.lines(json.loads(request.doc["episode"])), 1)).get(turn, "") for request in requests]


@pytest.mark.parametrize("name", AGENTIC)
def test_a_task_is_solved_by_who_knows_the_way_and_by_no_other(name):
    if benchmarks.divide([name])[1]:
        pytest.skip("no sandbox")
    knowing = Scripted(ENVIRONMENTS[name].reference)
    found = harness.run(knowing, {name: task(name)})[name]
    assert found["scores"] == [[1.0]] * 3
    assert knowing.together[0] == 3, "conversations take their turns together"
    assert len(knowing.together) == max(len(ENVIRONMENTS[name].reference(json.loads(each["episode"]))) for each in task(name).eval_docs)
    transcript = json.loads(found["answers"][0])
    assert transcript["turns"] == sum(message["role"] == "assistant" for message in transcript["messages"])
    for miss in range(2):
        erring = Scripted(lambda row, miss=miss: ENVIRONMENTS[name].near_misses(row)[miss])
        assert harness.run(erring, {name: task(name)})[name]["scores"] == [[0.0]] * 3
    assert found["digest"] == harness.run(Scripted(lambda row: []), {name: task(name)})[name]["digest"]


def test_files_and_solutions_are_looked_for_in_training_text():
    found = harness.run(Scripted(lambda row: []), {"sql": task("sql")})["sql"]
    for prompt, document in zip(found["prompts"], task("sql").eval_docs):
        assert json.loads(document["episode"])["query"] in prompt


def test_without_a_sandbox_what_needs_one_is_not_run(monkeypatch):
    assert benchmarks.divide(["warehouse", "needle"]) == (["warehouse", "needle"], {})
    monkeypatch.setattr(confinement.shutil, "which", lambda name: None)
    able, refused = benchmarks.divide(["warehouse", "software", "humaneval"])
    assert able == ["warehouse"]
    assert set(refused) == {"software", "humaneval"}
    assert "bubblewrap" in refused["software"]


def history(row):
    """(messages, tools, what is to be said) at each turn of the perfect conversation."""
    talk, turns = conversation(HOUSE, row, HOUSE.turns), []
    messages, tools = next(talk)
    for line in HOUSE.reference(row):
        turns.append(({"messages": [dict(message) for message in messages], "tools": tools}, line))
        try:
            messages, tools = talk.send(line)
        except StopIteration:
            return turns


def test_vllm_goes_all_the_way_when_the_model_knows_it(tmp_path):
    """A random network whose head was changed, in closed form, to say the calls of one row: thinking, calls and all come from vLLM."""
    asked = task("warehouse", prompts=2)
    known = json.loads(asked.eval_docs[0]["episode"])
    model = parrot(tmp_path / "parrot", [(row, True, f"<think></think>{line}") for row, line in history(known)])
    tokenizer = load_tokenizer(model)
    with Engine(model, max_model_len=640, max_num_seqs=2) as engine:
        speaker = EngineLM(engine, tokenizer, [tokenizer.convert_tokens_to_ids(IM_END)], max_new_tokens=64, seed=0, batch=2)
        found = harness.run(speaker, {"warehouse": asked})["warehouse"]
    assert found["scores"] == [[1.0], [0.0]]
    assert json.loads(found["answers"][0])["turns"] == len(HOUSE.reference(known))


def test_a_conversation_that_outgrows_the_context_ends(checkpoint):
    """The model looks around for ever; what it is told makes the prompt longer each time."""
    tokenizer = load_tokenizer(checkpoint)
    spoken = SimpleNamespace(token_ids=tokenizer.encode(LOOK, add_special_tokens=False), finished=False)
    engine = SimpleNamespace(max_model_len=400, generate=lambda prompts, **settings: [[spoken]] * len(prompts))
    found = harness.run(EngineLM(engine, tokenizer, [4], max_new_tokens=64, seed=0, batch=4), {"warehouse": task("warehouse")})["warehouse"]
    assert found["scores"] == [[0.0]] * 3
    assert all(1 < json.loads(answer)["turns"] < HOUSE.turns for answer in found["answers"])


class Worker(BaseHTTPRequestHandler):
    """An endpoint that knows every row but the last one, of which it says to have no room for the second turn."""

    rows, last = {}, ""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        messages = request["messages"]
        said = [message for message in messages if message["role"] == "assistant"]
        made = [call["id"] for message in said for call in message["tool_calls"]]
        assert made == [message["tool_call_id"] for message in messages if message["role"] == "tool"]
        assert [tool["function"]["name"] for tool in request["tools"]] == ["look", "carry"]
        assert {message["role"] for message in messages} <= {"user", "assistant", "tool"}
        if said and messages[0]["content"] == self.last:
            self._say(400, {"error": "this model's maximum context length is exceeded"})
            return
        line = HOUSE.reference(self.rows[messages[0]["content"]])[len(said)]
        message = {"role": "assistant", "content": None}
        for item in items_of(line, 0):
            if item["type"] == "function_call":
                message["tool_calls"] = [{"id": "x", "type": "function", "function": {k: item[k] for k in ("name", "arguments")}}]
            else:
                message["content"] = line
        self._say(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}})

    def _say(self, status, value):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_endpoint_is_spoken_to_in_openais_terms(concurrency):
    asked = task("warehouse", prompts=4)
    rows = {document["prompt"]: json.loads(document["episode"]) for document in asked.eval_docs}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Knowing", (Worker,), {"rows": rows, "last": list(rows)[-1]}))
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint, answered = Endpoint(f"http://127.0.0.1:{server.server_port}", "worker", concurrency=concurrency, max_tokens=64), []
    endpoint.progress = answered.append
    found = harness.run(endpoint, {"warehouse": asked})["warehouse"]
    prompts = [instance.args[0] for instance in asked.instances]
    endpoint.write(prompts[:1], 3)
    server.shutdown()
    server.server_close()
    assert found["scores"] == [[1.0], [1.0], [1.0], [0.0]]
    assert sum(answered) == 4 + 1, "progress counts conversations, not turns"
    assert endpoint.tokens == 3, "timed is one answer to the first turn"
