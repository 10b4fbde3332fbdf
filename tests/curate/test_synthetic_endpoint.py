"""A model as the author: what it writes is verified, never trusted; failures of the endpoint are waited out or told in one line."""

import json
import re
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curate.synthetic.families import FAMILIES
from components.curate.synthetic.replies import BadReplyError, item_of, request
from components.curate.synthetic.verify import failure
from stagecraft.contract.errors import UserError
from stagecraft.environments import sandbox, verify
from tests.curate.test_synthetic import made

LONG = " Every step is written out, so that a reader can follow it from the first line to the last, and none is left to be guessed."
TAX = {"problem": "A mill sells 40 tiles a day at 12 dollars and has costs of 130 dollars. What is its daily profit?",
       "solution": "Revenue is 40 * 12 = 480 dollars. Profit is what is left after costs: 480 - 130 = 350 dollars." + LONG,
       "expression": "40 * 12 - 130", "answer": "350"}
QUIZ = {"question": "What is the mean of 4, 9 and 20?", "options": {"A": "10", "B": "11", "C": "12", "D": "33"},
        "solution": "The sum is 4 + 9 + 20 = 33 and 33 / 3 = 11." + LONG, "expression": "(4 + 9 + 20) / 3", "answer": "B"}
PUZZLE = {"problem": "Ann, Bob and Cy came in first, second and third. Ann came in before Bob. Cy was not second, nor third. Who was "
                     "second?",
          "solution": "Cy must be first, as nothing else is left for him. Ann is ahead of Bob." + LONG,
          "variables": {"Ann": [1, 2, 3], "Bob": [1, 2, 3], "Cy": [1, 2, 3]}, "distinct": True,
          "constraints": ["Ann < Bob", "Cy != 2", "Cy != 3"], "asked": 2, "answer": "Ann"}
TRACE = {"problem": "Find the greatest common divisor of 84 and 36 with Euclid's algorithm.",
         "solution": "First 84 = 2 * 36 + 12, then 36 = 3 * 12 + 0, so that nothing remains and the divisor is 12." + LONG,
         "function": "gcd", "arguments": [84, 36], "answer": "12"}
CODE = {"problem": "Write a function that doubles a number.", "solution": "Adding a number to itself gives twice the number." + LONG,
        "code": "def double(x):\n    return x + x\n",
        "asserts": ["assert double(2) == 4", "assert double(-1) == -2", "assert double(0) == 0"]}
GOOD = {"economics": TAX, "multiple-choice": QUIZ, "logic": PUZZLE, "algorithmic": TRACE, "code-concepts": CODE}
BAD = {
    "economics": [({"answer": "351"}, "wrong_answer"), ({"expression": "350"}, "reply_not_checkable"),
                  ({"expression": "350 + 0 * 12 * 40"}, ""),
                  ({"expression": "40 * 12 - 999"}, "input_not_stated"), ({"expression": "40 * twelve"}, ""), ({"answer": "much"}, ""),
                  ({"solution": TAX["solution"].replace("= 350", "= 360")}, "false_equation"), ({"solution": "350"}, "solution_too_short"),
                  ({"extra": 1}, "reply_of_wrong_form"), ({"answer": 350}, "reply_of_wrong_form"),
                  ({"problem": None}, "reply_of_wrong_form"),
                  ({"expression": "__import__('os').system('true') + 40 * 12"}, "")],
    "multiple-choice": [({"answer": "C"}, "wrong_answer"), ({"answer": "E"}, "reply_of_wrong_form"),
                        ({"options": {"A": "11", "B": "11"}}, ""),
                        ({"options": {"A": "11", "B": "11", "C": "1", "D": "2"}}, "ambiguous")],
    "logic": [({"answer": "Bob"}, "wrong_answer"), ({"constraints": ["Ann < Bob", "Cy != 2"]}, "ambiguous"),
              ({"constraints": ["Ann < Bob", "Bob < Ann"]}, "contradictory"), ({"constraints": ["Ann < Dan", "Cy != 2"]}, "not_checkable"),
              ({"variables": {"Ann": [1, 2], "Eve": [1, 2]}}, "input_not_stated"),
              ({"variables": {name: list(range(200)) for name in ("Ann", "Bob", "Cy")}}, "not_checkable")],
    "algorithmic": [({"answer": "6"}, "wrong_answer"), ({"function": "eval"}, "not_checkable"),
                    ({"arguments": [84, 35]}, "input_not_stated"),
                    ({"arguments": [84]}, "not_checkable"), ({"arguments": {"a": 84}}, "reply_of_wrong_form")],
    "code-concepts": [({"asserts": ["assert True"] * 3}, "asserts_of_wrong_form"),
                      ({"asserts": CODE["asserts"][:2]}, "reply_of_wrong_form"),
                      ({"code": "def double(x) return"}, "code_cannot_be_parsed"),
                      ({"asserts": ["import os", "import os", "assert double(1) == 2"]}, "asserts_of_wrong_form"),
                      ({"asserts": ["assert double(2) == 4"] * 3}, "asserts_of_wrong_form")],
}


class Server:
    """Answers in the OpenAI format: to exercise `number` of a family, what `answers` says for it; else a right one."""

    def __init__(self, answers=None, failures=()):
        self.asked, self.headers, self.failures = [], [], list(failures)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"]
                outer.headers.append((self.path, self.headers["Authorization"]))
                status, family = 200, next(family for family in FAMILIES if request_of(family) in prompt)
                if outer.failures and (failed := outer.failures.pop(0)):
                    status = failed
                else:
                    outer.asked.append(prompt)
                number = int(re.search(r"exercise number (\d+)", prompt)[1]) - 1
                reply = (answers or {}).get((family, number), json.dumps(numbered(GOOD[family], number)))
                content = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [
                    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}]}
                data = json.dumps(content if status == 200 else {"error": {"message": f"not {outer.headers[-1][1]}"}}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if status == 429:
                    self.send_header("Retry-After", "0.05")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()


def request_of(family):
    return request(family, 0, 0).partition(".")[0]


def numbered(reply, number):
    """The same exercise in other words, so that no prompt is asked twice."""
    key = "question" if "question" in reply else "problem"
    found = {**reply, key: f"This is variant {chr(ord('a') + number)}. {reply[key]}"}
    if "code" in reply:
        found = {**found, "code": reply["code"].replace("x", "x" * (number + 1))}
    return found


def reason(family, reply):
    try:
        return failure(item_of(family, 0, reply), trusted=False)
    except BadReplyError as error:
        return str(error)


@pytest.mark.parametrize("family", [family for family in GOOD if family != "code-concepts"])
def test_right_replies_are_used_and_wrong_ones_have_a_reason(family):
    assert reason(family, json.dumps(GOOD[family])) is None
    for changes, wanted in BAD[family]:
        found = reason(family, json.dumps({**GOOD[family], **changes}))
        assert found is not None and (wanted.removeprefix("reply_") in found or not wanted or "stated" in found), (changes, found)


@pytest.mark.parametrize("reply, wanted", [
    ("", "reply_not_json"), ("Sure! Here it is: {}", "reply_not_json"), ("```json\n{}\n```", "reply_not_json"),
    ("[]", "reply_of_wrong_form"),
    ("{}", "reply_of_wrong_form"), ("null", "reply_of_wrong_form"), ("[" * 5000, "reply_not_json"), ("x" * 30_000, "reply_too_long"),
    (json.dumps(TAX)[:-20], "reply_not_json")])
def test_garbage_is_counted(reply, wanted):
    assert {reason(family, reply) for family in FAMILIES} == {wanted}


JUNK = st.sampled_from([
    None, True, -1, 0.5, 10**30, "", " ", "x", "1", "B", "$", "(", "1/0", "2**99999", "a" * 9000, "<|im_end|>", "\n", [], [[]], {},
    {"A": " "},
    [1, "a", [2]], [True, False], ["1 < 2", "2 < 3"], {"Ann": [], "Bob": []}, {"Ann": [1], "Bob": [True]}, dict.fromkeys("ABCD", " "),
    "digits", "primes", "power", "distance", [84, 1], [10**6], [84, 36, 0], [["a", "b"], "c", "d"], "x" + "[" * 150 + "]" * 150])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([family for family in GOOD if family != "code-concepts"]), st.data())
def test_no_reply_breaks_the_stage(family, data):
    """Members replaced by junk: at most a reason comes back, never another exception; a junk answer or solution is always seen."""
    members = data.draw(st.sets(st.sampled_from(sorted(GOOD[family])), min_size=1, max_size=3))
    changes = {member: data.draw(JUNK) for member in members}
    found = reason(family, json.dumps({**GOOD[family], **changes}))
    assert isinstance(found, str) or not {"answer", "solution"} & {member for member in members if changes[member] != GOOD[family][member]}


def test_code_is_refused_where_its_form_is_wrong():
    for changes, wanted in BAD["code-concepts"]:
        assert reason("code-concepts", json.dumps({**CODE, **changes})) == wanted


def test_without_a_sandbox_a_models_code_never_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    mark = tmp_path / "ran"
    code = CODE["code"] + f"open({str(mark)!r}, 'w')\n"
    assert reason("code-concepts", json.dumps({**CODE, "code": code})) == "no_sandbox"
    assert not mark.exists()


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_in_the_sandbox_code_is_judged_and_cannot_get_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "_SECONDS", 2)
    assert sandbox.run_confined(CODE["code"], CODE["asserts"]) is None
    mark = tmp_path / "out"
    failed, slow = ("program_failed",), ("program_failed", "program_too_slow")
    attempts = {
        "assert double(2) == 5": ("assertion_failed",),
        f"open({str(mark)!r}, 'w')": failed, f"import os; os.listdir({str(tmp_path)!r})": failed,
        "import sys; sys.exit(0)": failed, "import os; os._exit(0)": failed, "while True: pass": slow, "import time; time.sleep(9)": slow,
        "x = bytearray(2**31)": failed, "print('x' * 2**24)": failed,
        "import socket; socket.create_connection(('127.0.0.1', 1), 1)": failed,
        "import os; assert os.getuid() >= 65534 and os.getpid() < 10 and 'HOME' not in os.environ": (None,)}
    for line, wanted in attempts.items():
        assert sandbox.run_confined(CODE["code"], [line]) in wanted, line
    assert not mark.exists()


def test_a_model_writes_documents_and_rows_and_a_refusal_is_waited_out(tmp_path, monkeypatch):
    for name, value in (("PATH", str(tmp_path)), ("http_proxy", "http://127.0.0.1:9"), ("no_proxy", ""), ("NO_PROXY", "")):
        monkeypatch.setenv(name, value)  # no sandbox, and a proxy that does not reach this machine
    answers = {("economics", 1): "no JSON", ("economics", 2): json.dumps({**numbered(TAX, 2), "answer": "7"}),
               ("logic", 0): json.dumps(numbered(PUZZLE, 1))}  # the same as the next
    with Server(answers, failures=[429]) as server:
        result = made(tmp_path, {"economics": 3, "logic": 1, "multiple-choice": 2, "algorithmic": 1, "code-concepts": 1}, 2,
                      url=server.url, model="writer")
        assert len(server.asked) == 8 + 5 * 2 and len(server.headers) == len(server.asked) + 1
        accounts = {family: account.plain() for family, account in result.accounts.items()}
        assert accounts["economics"]["rejected"] == {"reply_not_json": 1, "wrong_answer": 1}
        assert accounts["logic"]["rejected"] == {"repeated": 1} and accounts["code-concepts"]["rejected"] == {"no_sandbox": 3}
        assert [(account["generated"], account["documents"], account["rows"]) for account in accounts.values()] == [
            (5, 3, 0), (3, 1, 1), (4, 2, 2), (3, 1, 2), (3, 0, 0)]
        assert all(verify(row, row["demonstration"]).score == 1 for row in result.rows["sft"]) and len(result.rows["sft"]) == 5
        rows = [json.loads(line) for file in result.files for line in Path(file.path).read_text().splitlines()]
        assert len(rows) == 7 and all(row["licence"] == "" for row in rows)
        again = made(tmp_path, {"economics": 3, "logic": 1, "multiple-choice": 2, "algorithmic": 1, "code-concepts": 1}, 2,
                     url=server.url, model="writer")
        assert len(server.asked) == 18 and again.rows == result.rows and [f.stamp for f in again.files] == [f.stamp for f in result.files]


def test_replies_outlive_a_failure_and_a_kill_in_the_middle_of_a_line(tmp_path):
    wanted = {"economics": 6}
    with Server(failures=[0, 0, 500]) as server:
        with pytest.raises(UserError, match="500"):
            made(tmp_path, wanted, url=server.url, model="writer", max_retries=0, concurrency=1)
        first = len(server.asked)
        cache = tmp_path / "results" / "synthetic-replies.jsonl"
        kept = cache.read_text().splitlines()
        assert 2 <= len(kept) <= first < 6
        cache.write_text("\n".join(kept[:-1]) + "\n" + kept[-1][:30])
        result = made(tmp_path, wanted, url=server.url, model="writer")
        assert result.accounts["economics"].documents == 6
        assert len(set(server.asked)) == 6 and len(server.asked) <= first + 6 - len(kept) + 1
        assert len([json.loads(line) for line in cache.read_text().splitlines()]) == 6
    assert made(tmp_path, wanted, url=server.url, model="writer").accounts["economics"].documents == 6  # the server is gone


def refused(tmp_path, **endpoint) -> str:
    with pytest.raises(UserError) as caught:
        made(tmp_path, {"economics": 2}, model="writer", max_retries=0, **endpoint)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_wrong_with_the_endpoint_is_one_line(tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        assert "cannot be reached" in refused(tmp_path / "a", url=url)
    monkeypatch.delenv("WRITER_KEY", raising=False)
    assert "WRITER_KEY is not set" in refused(tmp_path / "b", url=url, key_variable="WRITER_KEY")
    for odd in ("s\u00e9same", "open sesame", "sesame\nsesame"):
        monkeypatch.setenv("WRITER_KEY", odd)
        message = refused(tmp_path / "c", url=url, key_variable="WRITER_KEY")
        assert "WRITER_KEY holds no key" in message and "same" not in message
    monkeypatch.setenv("WRITER_KEY", "sesame\n")  # as a file that an editor wrote has it
    for status, words in ((401, "refuses the key"), (404, "answers 404"), (503, "run again")):
        with Server(failures=[status] * 9) as server:
            message = refused(tmp_path / str(status), url=server.url, key_variable="WRITER_KEY")
            assert words in message and "sesame" not in message
            assert server.headers[0] == ("/v1/chat/completions", "Bearer sesame")
