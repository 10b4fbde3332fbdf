"""`stagecraft compare`: figures against closed forms, protocols that differ, and one run over real servers."""

import json
import math
import shutil
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread

import pytest
from lxml import etree
from scipy import stats

from components.evaluate import benchmarks
from components.evaluate.params import Benchmarks
from components.evaluate.protocol import Model
from components.evaluate.side_by_side import Plan, Subject, report, run
from components.evaluate.side_by_side.endpoint import Endpoint
from components.evaluate.side_by_side.figures import ALL, Measured, summarise
from components.evaluate.side_by_side.run import _contamination
from components.evaluate.side_by_side.subjects import served_name
from stagecraft.cli import compare
from stagecraft.contract import manifest
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.contract.stages import PATHS
from stagecraft.data.tasks import draw_splits, write_rows
from stagecraft.data.tokenizer import CHAT_TEMPLATE
from stagecraft.inference.server import Server
from stagecraft.inference.server_settings import Settings
from tests.checkpoints import tiny_checkpoint

UNTOLD = ["engine", "plugin", "compute_dtype", "tensor", "threads", "max_num_seqs", "draft_tokens", "prefix_caching"]  # by an endpoint
SERVER = Settings(name="tiny", max_model_len=192, max_num_seqs=4, dtype="float32", draft_tokens=0, tensor=1, threads=1,
                  startup_seconds=280.0)
PLAN = Plan(benchmarks=Benchmarks(tasks=["families", "needle"], data="", prompts=6, lengths=[10, 20], max_new_tokens=6), server=SERVER,
            rounds=2, concurrency=4, seed=3, confidence=0.95, together=True, force=False)


def measured(name, scores, speeds):
    rounds = [{"task": {"scores": [[score] for score in each]}} for each in scores]
    tokens = [int(100 * speed) for speed in speeds]
    return Measured(Model(name, name * 64, "float32"), {"seed": 1}, rounds, tokens, [100.0] * len(speeds), 1)


def test_figures_are_the_closed_forms():
    a = measured("a", [[1, 0, 1, 1], [1, 0, 0, 1]], [40, 50, 66])
    b = measured("b", [[0, 0, 1, 1], [0, 0, 1, 1]], [20, 25, 30])
    found = summarise({"a": a, "b": b}, 0.95)
    means = [1.0, 0.0, 0.5, 1.0]
    assert found["subjects"]["a"]["accuracy"]["task"] == pytest.approx({"value": 0.625, "stderr": stats.sem(means), "n": 4})
    assert found["subjects"]["a"]["accuracy"][ALL] == found["subjects"]["a"]["accuracy"]["task"]
    interval = stats.ttest_1samp([math.log(speed) for speed in (40, 50, 66)], 0).confidence_interval(0.95)
    assert found["subjects"]["a"]["tokens_per_second"]["value"] == pytest.approx(stats.gmean([40, 50, 66]))
    assert found["subjects"]["a"]["tokens_per_second"]["interval"] == pytest.approx([math.exp(interval.low), math.exp(interval.high)])
    (pair,) = found["pairs"]
    logs = [math.log(2), math.log(2), math.log(2.2)]
    interval = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert pair["speed_ratio"]["value"] == pytest.approx((2 * 2 * 2.2) ** (1 / 3))
    assert pair["speed_ratio"]["interval"] == pytest.approx([math.exp(interval.low), math.exp(interval.high)])
    assert pair["accuracy"]["task"]["difference"] == pytest.approx(0.125)
    assert pair["accuracy"]["task"]["p_value_adjusted"] == min(1.0, 2 * pair["accuracy"]["task"]["p_value"])


def test_what_could_be_found_is_unknown_where_two_never_differed(tmp_path):
    a, b = (measured(name, [[1, 0, 1]] * 2, [40, 50]) for name in "ab")
    found = {**summarise({"a": a, "b": b}, 0.95), "plan": asdict(PLAN), "not_run": {}, "differing": [], "untold": [], "contamination": None}
    html = report.render(found, RunLog("compare", tmp_path, tmp_path))
    assert html.count("<td>unknown</td>") == 2 and found["pairs"][0]["accuracy"][ALL]["detectable"] == 0


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project directory with held-out tasks and a checkpoint; it is the current directory of this module."""
    root = tmp_path_factory.mktemp("compare")
    rows = draw_splits({"sft": 2, "rl": 2, "heldout": 12}, {"sort": 0.0, "tool": 0.0}, 0)["heldout"]
    write_rows(root / "artifacts" / "corpus" / "tasks" / "heldout.jsonl", rows)
    tiny_checkpoint(root / "tiny")
    tiny_checkpoint(root / "plain", mtp=False)
    for name in ("tiny", "plain"):
        (root / name / "chat_template.jinja").write_text(CHAT_TEMPLATE.read_text())
    shutil.copytree(root / "tiny", root / "changed")
    (root / "changed" / "README.md").write_text("one")
    manifest.write(root / "changed", stage="rl", params={}, inputs={}, code="", environment={}, metrics={})
    (root / "changed" / "README.md").write_text("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


class Oracle(BaseHTTPRequestHandler):
    """An endpoint that knows the held-out tasks; `solves` False answers the same with one mistake; from the
    `short_from`th request on it ignores `ignore_eos`. Not a model: a key to the judge."""

    solves, asked, short_from = True, None, None

    def do_GET(self):
        self._say({"data": [{"id": "oracle", "max_model_len": 192}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(request)
        text = request["messages"][-1]["content"]
        row = next(row for row in map(json.loads, Path("artifacts/corpus/tasks/heldout.jsonl").read_text().splitlines())
                   if row["messages"][-1]["content"] == text)
        known, message = row["verifier"], {"role": "assistant", "content": None}
        if known["kind"] == "tool_call":
            arguments = json.dumps(known["arguments"] if self.solves else {})
            message["tool_calls"] = [{"id": "1", "type": "function", "function": {"name": known["name"], "arguments": arguments}}]
        else:
            message["content"] = known["answer"] + ("" if self.solves else "!")
        willing = self.short_from is None or len(self.asked) <= self.short_from
        length = request["max_tokens"] if request.get("ignore_eos") and willing else 3
        self._say({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": length}})

    def _say(self, value):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *arguments):
        pass


@contextmanager
def oracles(**kinds):
    """Oracles that are up, as subjects: name -> what is changed of the class."""
    handlers = {name: type(name, (Oracle,), {"asked": [], **changes}) for name, changes in kinds.items()}
    servers = {name: ThreadingHTTPServer(("127.0.0.1", 0), handler) for name, handler in handlers.items()}
    for each in servers.values():
        Thread(target=each.serve_forever, daemon=True).start()
    try:
        yield [Subject(name, f"http://127.0.0.1:{each.server_port}") for name, each in servers.items()], handlers
    finally:
        for each in servers.values():
            each.shutdown()
            each.server_close()


ORACLES_PLAN = replace(PLAN, benchmarks=replace(PLAN.benchmarks, tasks=["families"], prompts=12))


def test_right_answers_count_tool_calls_among_them_and_wrong_ones_do_not(project):
    out = project / "oracles"
    with oracles(solver={}, dunce={"solves": False}) as (subjects, handlers):
        found = run(subjects, ORACLES_PLAN, out, RunLog("compare", out / "plots", project))
    assert found["contamination"] is None and "no corpus was at hand" in (out / "report.html").read_text()
    assert [subject["accuracy"]["families"]["value"] for subject in found["subjects"].values()] == [1.0, 0.0]
    (pair,) = found["pairs"]
    assert pair["accuracy"]["families"]["p_value"] == pytest.approx(2 * 0.5**12)
    asked = handlers["solver"].asked
    timed = [request for request in asked if request.get("ignore_eos")]
    assert len(timed) == PLAN.concurrency + 2 * 12, "once to warm up, then every prompt in every round"
    assert {(request["max_tokens"], request["top_p"]) for request in asked} == {(6, 1.0)}
    assert sum("tools" in request for request in timed[PLAN.concurrency:]) == 2 * 6
    assert all(message["role"] == "user" for request in asked for message in request["messages"])


@pytest.mark.parametrize(("content", "answer"), [
    ("three", "three"), ("<think>one, two</think>three", "three"), ("one, two</think>three", "three"), ("<think>one, two", ""), (None, "")])
def test_thinking_that_a_server_leaves_in_its_answers_is_no_part_of_them(content, answer):
    endpoint = Endpoint("http://127.0.0.1:1", "thinker", concurrency=1, max_tokens=8)
    assert endpoint.parse_generations({"choices": [{"message": {"content": content}}]}) == [answer]


def test_an_endpoint_that_answers_at_another_length_is_refused_before_the_rounds(project):
    with oracles(exact={}, short={"short_from": 0}) as (subjects, handlers):
        with pytest.raises(UserError, match=r"exact and short were measured by different protocols: answers_timed differ"):
            run(subjects, ORACLES_PLAN, project / "short", RunLog("compare", project / "short" / "plots", project))
    assert [len(handler.asked) for handler in handlers.values()] == [PLAN.concurrency] * 2, "the warm-up and nothing else"
    assert not (project / "short" / "comparison.json").exists()


def test_what_was_measured_is_written_though_the_lengths_come_to_differ(project):
    out = project / "late"
    with oracles(exact={}, tiring={"short_from": PLAN.concurrency}) as (subjects, _):
        with pytest.raises(UserError, match=r"answers_timed differ .*; the figures of each are in .*late/report.html, and no comparison"):
            run(subjects, ORACLES_PLAN, out, RunLog("compare", out / "plots", project))
    written = json.loads((out / "comparison.json").read_text())
    assert written["differing"] == ["answers_timed"] and written["pairs"] == []
    assert written["subjects"]["tiring"]["accuracy"]["families"]["value"] == 1.0
    html = (out / "report.html").read_text()
    etree.fromstring(html.encode())
    assert "Not compared" in html and "Pairs" not in html


@pytest.fixture(scope="module")
def server(project):
    with Server(project / "tiny", SERVER, project / "server.log") as up:
        yield up


@pytest.fixture(scope="module")
def comparison(project, server):
    """One server under two names."""
    subjects = [Subject("one", server.url), Subject("two", f"http://localhost:{server.port}")]
    out = project / "comparison"
    out.mkdir()
    return run(subjects, PLAN, out, RunLog("compare", out / "plots", out))


def test_a_model_against_itself_differs_in_nothing(comparison):
    one, two = comparison["subjects"].values()
    assert one["scores"] == two["scores"]
    assert set(one["accuracy"]) == {"families", "needle", ALL}
    assert one["accuracy"][ALL]["n"] == 12
    (pair,) = comparison["pairs"]
    assert pair["accuracy"][ALL]["difference"] == 0
    assert pair["accuracy"][ALL]["p_value"] == 1.0
    assert comparison["differing"] == []
    assert comparison["untold"] == UNTOLD
    assert one["protocol"]["answers_timed"] == "exactly 6 tokens"
    assert one["protocol"]["max_model_len"] == 192
    assert all(speed > 0 for speed in one["tokens_per_second"]["rounds"])


def test_the_report_is_well_formed_and_says_it(comparison, project):
    html = (project / "comparison" / "report.html").read_text()
    etree.fromstring(html.encode())
    assert "Same prompts, lengths and requests at a time" in html and "batch and hardware" not in html
    assert f"perhaps not the same:</strong> {', '.join(UNTOLD)}." in html
    assert json.loads((project / "comparison" / "comparison.json").read_text())["pairs"] == json.loads(json.dumps(comparison["pairs"]))


def test_an_endpoint_and_a_checkpoint_are_compared_by_force_alone(server, project):
    subjects = [Subject("up", server.url), Subject("tiny", project / "tiny")]
    with pytest.raises(UserError, match="compare: up and tiny were measured by different protocols: engine, plugin, compute_dtype"):
        run(subjects, PLAN, project / "refused", RunLog("compare", project / "plots", project))
    assert not (project / "refused").exists(), "nothing was started"


def test_a_checkpoint_answers_as_its_server_does(comparison, server, project, capsys):
    """By force, through the command line, which serves the checkpoint itself."""
    (project / "params.yaml").write_text("serve:\n  server: {name: tiny, max_model_len: 192, max_num_seqs: 4, dtype: float32, "
                                         "draft_tokens: 0, tensor: 1, threads: 1, startup_seconds: 280.0}\n")
    assert compare.main([server.url, "./tiny", "--task", "families", "--task", "needle", "--prompts", "6", "--lengths", "10", "20",
                         "--max-tokens", "6", "--rounds", "2", "--concurrency", "4", "--seed", "3", "--force", "--out", "forced"]) == 0
    assert "compared by force: engine, plugin, compute_dtype" in capsys.readouterr().out
    written = json.loads((project / "forced" / "comparison.json").read_text())
    assert written["subjects"]["tiny"]["scores"] == comparison["subjects"]["one"]["scores"]
    assert "Compared by force" in (project / "forced" / "report.html").read_text()
    assert len(written["subjects"]["tiny"]["model"]["digest"]) == 64


@pytest.mark.parametrize(("arguments", "message"), [
    ([], r"0 given - name two or more to compare; .* python -m benchmarks\.architectures"),
    (["./tiny"], "name two or more"), (["./nothing", "./tiny"], "no such directory"), (["./tiny", "champion"], "no registry"),
    (["./tiny", "./tiny", "--rounds", "1"], "rounds: Input should be greater than or equal to 2"),
    (["./tiny", "./tiny", "--concurrency", "0"], r"stagecraft compare\.concurrency: Input should be greater than 0 \(found 0\)"),
    (["./tiny", "./tiny", "--prompts", "1"], r"stagecraft compare\.benchmarks: prompts is 1, a standard error needs two"),
    (["./tiny", "./tiny", "--task", "glue"], "'glue' is no task"),
    (["./tiny", "./tiny", "--task", "gsm8k"], "put the data there"),
    (["./tiny", "http://127.0.0.1:9"], "no endpoint answers"),
    (["./tiny", "http://127.0.0.1:x9"], "no address of a server"), (["./tiny", "http://[::1"], "no address of a server: Invalid IPv6 URL"),
    (["./tiny", "models:/stagecraft@champion"], "no registry"), (["./tiny", "models:/other@champion"], "no such model in the registry"),
    (["./tiny", "HEAD:artifacts/aligned"], r"HEAD:artifacts/aligned: no dvc\.lock"),
    (["./tiny", "./changed"], "README.md: corrupt file"),
    (["./tiny", "./plain", "--draft-tokens", "2"], "plain: the checkpoint has no MTP block"),
])
def test_mistakes_are_one_line(arguments, message, project):
    (project / "params.yaml").write_text("serve:\n  server: {name: tiny, max_model_len: 192, max_num_seqs: 4, dtype: float32, "
                                         "draft_tokens: 0, tensor: 1, threads: 1, startup_seconds: 280.0}\n")
    with pytest.raises(UserError, match=message):
        compare.main(arguments)


def test_what_speaks_no_http_is_no_endpoint():
    class Other(StreamRequestHandler):
        def handle(self):
            self.rfile.readline()
            self.wfile.write(b"220 mail\r\n")

    with ThreadingTCPServer(("127.0.0.1", 0), Other) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="no endpoint answers: 220 mail"):
            served_name(f"http://127.0.0.1:{other.server_address[1]}")
        other.shutdown()


def test_a_checkpoint_without_a_block_to_draft_with_is_served_without_drafts(project):
    plan = replace(PLAN, server=replace(SERVER, draft_tokens=2))
    drafts = [Subject(name, project / name).conditions(plan)["draft_tokens"] for name in ("tiny", "plain")]
    assert drafts == [2, 0]


def test_prompts_are_looked_for_in_the_corpus_at_hand(corpus, tmp_path, monkeypatch):
    whole = shutil.copytree(corpus, tmp_path / "corpus")
    monkeypatch.setitem(PATHS, "corpus", whole)
    tasks = {name: benchmarks.load(name, replace(PLAN.benchmarks, prompts=12), 0) for name in ("families", "needle")}
    assert _contamination(tasks) is None, "without a manifest it is no corpus"
    manifest.write(whole, stage="curate", params={}, inputs={}, code="", environment={}, metrics={})
    found = _contamination(tasks)
    assert {name: overlap["rows"] for name, overlap in found.items()} == {"families": [0], "needle": []}  # the row that leaked


def test_something_that_is_no_openai_endpoint(server):
    with pytest.raises(UserError, match="refuses: 404"):
        served_name(f"{server.url}/elsewhere")


def test_equal_names_get_numbers(project):
    subjects = compare._distinct([Subject("a", "x"), Subject("b", "y"), Subject("a", "z")])
    assert [subject.name for subject in subjects] == ["a-1", "b", "a-2"]
    assert replace(subjects[0], name="a") == Subject("a", "x")
    taken = compare._distinct([Subject("a", "x"), Subject("a", "y"), Subject("a-1", "z"), Subject("a-3", "w")])
    assert [subject.name for subject in taken] == ["a-2", "a-4", "a-1", "a-3"]
