// The chat of the page: streams answers, folds the thinking, shows tool calls. Whatever a model writes becomes text, never markup.
"use strict";

const part = (id) => document.getElementById(id);
const log = part("log"), prompt = part("prompt"), send = part("send"), stop = part("stop");
let messages = [], running = null, waiting = null;

function put(parent, tag, text, name) {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  if (name) node.className = name;
  parent.append(node);
  return node;
}

function turn(who) {
  const node = put(log, "div", "", "turn");
  put(node, "h3", who);
  return node;
}

function fail(node, message) {
  put(node, "p", message, "error").setAttribute("role", "alert");
}

// What has come of an answer, and where it is shown; nodes appear with their first text.
class Answer {
  constructor(node) {
    this.node = node;
    this.content = this.reasoning = "";
    this.calls = [];
    this.shown = [];
  }

  add(delta) {
    const thought = delta.reasoning || delta.reasoning_content;
    if (thought) {
      if (!this.thinking) {
        const fold = put(this.node, "details");
        put(fold, "summary", "Thinking");
        this.thinking = put(fold, "p", "", "thinking");
      }
      this.thinking.append(thought);
      this.reasoning += thought;
    }
    if (delta.content) {
      this.text ||= put(this.node, "p", "", "content");
      this.text.append(delta.content);
      this.content += delta.content;
    }
    for (const piece of delta.tool_calls || []) this.call(piece);
    log.scrollTop = log.scrollHeight;
  }

  call(piece) {
    const known = this.calls[piece.index] ||= {id: "", type: "function", function: {name: "", arguments: ""}};
    known.id ||= piece.id || "";
    known.function.name += piece.function?.name || "";
    known.function.arguments += piece.function?.arguments || "";
    this.shown[piece.index] ||= put(this.node, "pre", "", "call");
    this.shown[piece.index].textContent = `calls ${known.function.name}(${known.function.arguments})`;
  }

  message() {
    const calls = this.calls.filter(Boolean);
    return {role: "assistant", content: this.content, ...(calls.length ? {tool_calls: calls} : {})};
  }
}

// The form under an answer for what its calls gave. A call without a result would leave the conversation malformed: a question that
// is asked before they are sent takes what stands in the fields.
class Results {
  constructor(node, calls) {
    this.calls = calls;
    this.form = put(node, "form", "", "results");
    this.fields = calls.map((call, index) => {
      const field = put(put(this.form, "label", `Result of call ${index + 1}, ${call.function.name}`), "textarea");
      field.rows = 2;
      return field;
    });
    this.send = put(this.form, "button", "Send the results");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!running) ask();
    });
    this.fields[0].focus();
  }

  messages() {
    return this.calls.map((call, index) => ({role: "tool", tool_call_id: call.id, content: this.fields[index].value || "no result"}));
  }

  close() {
    for (const field of this.fields) field.readOnly = true;
    this.send.remove();
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function tools() {
  const text = part("tools").value.trim();
  if (!text) return [];
  const given = JSON.parse(text);
  if (!Array.isArray(given)) throw new SyntaxError("the tools are not a list");
  return given;
}

// Asks a question, or without one goes on from the results that are given.
async function ask(text) {
  if (text) put(turn("You"), "p", text);
  const answer = new Answer(turn("Model"));
  let asked;
  try {
    const said = [...(waiting ? waiting.messages() : []), ...(text ? [{role: "user", content: text}] : [])];
    asked = {messages: [...messages, ...said], tools: tools(), thinking: part("thinking").checked};
  } catch (error) {
    return fail(answer.node, `Tools: ${error.message}`);
  }
  running = new AbortController();
  busy(true);
  try {
    const response = await fetch("/api/chat", {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(asked), signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices || []) answer.add(choice.delta);
    }
    messages = [...asked.messages, answer.message()];
    waiting?.close();
    const calls = messages.at(-1).tool_calls;
    waiting = calls ? new Results(answer.node, calls) : null;
  } catch (error) {
    if (error.name === "AbortError") put(answer.node, "p", "stopped", "note");
    else fail(answer.node, error.message);
  } finally {
    running = null;
    busy(false);
    if (!waiting) prompt.focus();
  }
}

function busy(yes) {
  send.disabled = yes;
  stop.disabled = !yes;
  log.setAttribute("aria-busy", String(yes));
}

part("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = prompt.value.trim();
  if (!text || running) return;
  prompt.value = "";
  ask(text);
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  part("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
stop.addEventListener("click", () => running?.abort());
part("fresh").addEventListener("click", () => {
  running?.abort();
  messages = [];
  waiting = null;
  log.replaceChildren();
  prompt.focus();
});

fetch("/api/model").then((response) => response.json()).then((said) => {
  part("model").textContent = said.error ? said.error.message : `${said.name}, ${said.context} tokens of prompt and answer`;
}).catch(() => { part("model").textContent = "this page's own server does not answer"; });
