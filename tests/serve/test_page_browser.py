"""The page in a real browser, before a real server: streaming, thinking folded, tool calls, keyboard, and what a screen reader gets."""

import contextlib
import json
import threading
import time

import pytest
import uvicorn

from stagecraft.cli.page.app import application
from tests.page.tree import write_tree
from tests.serve.browser import CHROMIUM, chromium
from tests.serve.speech import PAY, PAYMENT, SAID, SUM, THOUGHT

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")


@pytest.fixture(scope="module")
def tab(parroting, tmp_path_factory):
    root = write_tree(tmp_path_factory.mktemp("page"))
    with served(application(root, parroting.url)) as url, chromium(tmp_path_factory.mktemp("browser")) as opened:
        opened.open(url)
        yield opened


@contextlib.contextmanager
def served(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def ask(tab, text):
    """Type a question and send it with the Enter key; returns when the answer has come."""
    tab.run("document.getElementById('prompt').focus()")
    tab.type(text)
    tab.key("Enter", 13, "\r")
    tab.wait("document.getElementById('prompt').value === ''")
    tab.wait("document.getElementById('stop').disabled")


def test_the_page_shows_the_record(tab):
    text = tab.run("document.body.innerText")
    assert "aligned was promoted." in text and "68.2% (58.3 to 76.3)" in text
    tab.wait("document.getElementById('model').textContent.startsWith('stagecraft, 384 tokens')")
    assert tab.run("document.querySelectorAll('#stages svg path').length") == 2


# A busy server puts tokens together that its client is late to take: here a text comes to the page letter by letter, 20 ms apart.
SLOWLY = """window.fetched = window.fetch; window.fetch = async (...asked) => {
    const answer = await fetched(...asked), pause = () => new Promise((go) => setTimeout(go, 20));
    let rest = "";
    const apart = new TransformStream({async transform(text, out) {
        const events = (rest + text).split(/(?<=\\n\\n)/);
        rest = events.at(-1).endsWith("\\n\\n") ? "" : events.pop();
        for (const event of events) {
            const said = event.startsWith("data: {") ? JSON.parse(event.slice(6)) : null, delta = said?.choices?.[0]?.delta;
            if (!delta?.content) out.enqueue(event);
            else for (const [at, letter] of [...delta.content].entries()) {
                said.choices[0].delta = {...(at ? {} : delta), content: letter};
                out.enqueue(`data: ${JSON.stringify(said)}\\n\\n`);
                await pause(); } } }});
    return new Response(answer.body.pipeThrough(new TextDecoderStream()).pipeThrough(apart).pipeThrough(new TextEncoderStream()),
                        {status: answer.status, headers: answer.headers}); }"""


def test_an_answer_streams_and_its_thinking_is_folded(tab):
    tab.run(SLOWLY)
    try:
        _streams_and_folds(tab)
    finally:
        tab.run("window.fetch = window.fetched")


def _streams_and_folds(tab):
    tab.run("""window.seen = new Set(); new MutationObserver(() => seen.add(document.querySelector('#log .content')?.textContent))
        .observe(document.getElementById('log'), {subtree: true, childList: true, characterData: true})""")
    ask(tab, SUM["messages"][0]["content"])
    assert tab.run("document.querySelector('#log .content').textContent") == SAID
    fold = "document.querySelector('#log details')"
    assert tab.run(f"{fold}.open") is False and tab.run(f"{fold}.querySelector('.thinking').textContent") == THOUGHT
    assert tab.run("[...window.seen].filter(Boolean).length") > 2  # it was shown piece by piece
    tab.run(f"{fold}.querySelector('summary').focus()")
    tab.key("Enter", 13, "\r")
    assert tab.run(f"{fold}.open") is True


def test_tool_calls_are_shown(tab):
    tab.run("document.getElementById('fresh').click()")
    tab.run(f"document.getElementById('tools').value = {json.dumps(json.dumps([PAY]))}")
    ask(tab, PAYMENT["messages"][0]["content"])
    assert tab.run("[...document.querySelectorAll('#log .call')].map((call) => call.textContent)") == [
        'calls pay({"to": "Ann", "amount": 5})', 'calls pay({"to": "Bob", "amount": 7})']
    tab.run("document.getElementById('tools').value = 'no list'")
    ask(tab, "again")
    assert tab.run("document.querySelector('#log [role=alert]').textContent").startswith("Tools: ")
    tab.run("document.getElementById('tools').value = ''")


def test_results_of_tools_go_back_and_the_conversation_goes_on(tab):
    tab.run("document.getElementById('fresh').click()")
    tab.run("""window.bodies = []; window.fetched = window.fetch; window.fetch = (...asked) => {
        bodies.push(JSON.parse(asked[1].body)); return fetched(...asked); }""")
    tab.run(f"document.getElementById('tools').value = {json.dumps(json.dumps([PAY]))}")
    ask(tab, PAYMENT["messages"][0]["content"])
    assert tab.run("document.activeElement.labels[0].textContent") == "Result of call 1, pay"
    assert {"Result of call 1, pay", "Result of call 2, pay"} <= {node["name"] for node in tab.tree() if node["role"] == "textbox"}
    tab.type("paid Ann")
    tab.run("document.querySelector('#log .results button').click()")
    tab.wait("document.getElementById('stop').disabled && !document.querySelector('#log .results button')")
    ids, messages = tab.run("[bodies.at(-1).messages[1].tool_calls.map((call) => call.id), bodies.at(-1).messages]")
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert [(each["tool_call_id"], each["content"]) for each in messages[2:]] == [(ids[0], "paid Ann"), (ids[1], "no result")]
    assert tab.run("document.querySelectorAll('#log textarea:read-only').length") == 2
    tab.run("document.getElementById('fresh').click()")
    ask(tab, PAYMENT["messages"][0]["content"])
    ask(tab, "And now?")  # without having sent the results
    roles = tab.run("bodies.at(-1).messages.map((message) => message.role)")
    assert roles == ["user", "assistant", "tool", "tool", "user"]
    assert not tab.run("document.querySelector('#log [role=alert]')?.textContent")
    tab.run("window.fetch = window.fetched; document.getElementById('tools').value = ''")


def test_what_is_typed_is_text_and_no_markup(tab):
    tab.run("document.getElementById('fresh').click()")
    ask(tab, "<img src=x onerror='window.broken = 1'><script>window.broken = 1</script>")
    assert tab.run("document.querySelectorAll('#log img, #log script').length") == 0
    assert tab.run("window.broken") is None


def test_escape_stops_an_answer(tab):
    tab.run("document.getElementById('fresh').click()")
    tab.run("document.getElementById('prompt').focus()")
    tab.type("go on and on")
    tab.key("Enter", 13, "\r")
    tab.wait("!document.getElementById('stop').disabled")
    tab.key("Escape", 27)
    tab.wait("document.getElementById('stop').disabled")
    assert tab.run("document.activeElement.id") == "prompt"


def test_a_screen_reader_finds_its_way(tab):
    tree = tab.tree()
    roles = [node["role"] for node in tree]
    for landmark in ("banner", "navigation", "main", "contentinfo", "log"):
        assert roles.count(landmark) == 1, landmark
    assert {"Chat with the served model", "Evaluation", "Stages", "Lineage"} <= {n["name"] for n in tree if n["role"] == "region"}
    controls = [node for node in tree if node["role"] in ("button", "textbox", "checkbox", "link", "image", "DisclosureTriangle")]
    assert len(controls) > 10 and all(node["name"] for node in controls), [node for node in controls if not node["name"]]
    assert tab.run("document.documentElement.lang") == "en"


def test_the_browser_has_no_complaint(tab):
    """Neither an error of the script nor a violation of the page's policy; an inline script would be one, and does not run."""
    assert tab.complaints == []
    tab.run("(() => { const bad = document.createElement('script'); bad.textContent = 'window.inline = 1'; document.body.append(bad); })()")
    assert tab.run("window.inline") is None
    tab.wait("true")
    assert any("Content Security Policy" in said for said in tab.complaints)
