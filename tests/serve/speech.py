"""What the parrot of the conformance suite is taught to say, and how a client should see each line of it."""

from __future__ import annotations

from typing import Any

PAY = {"type": "function", "function": {"name": "pay", "parameters": {"type": "object", "properties": {
    "to": {"type": "string", "enum": ["Ann", "Bob"]}, "amount": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["to", "amount"]}}}


def _asked(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


SUM = _asked("How many hands have two people?")
SHORT = _asked("How many hands have you?")
PAYMENT = _asked("Pay Ann and Bob", tools=[PAY])
THOUGHT, SAID = "Two and two.", "Four hands, no more."
CALLS = [{"to": "Ann", "amount": 5}, {"to": "Bob", "amount": 7}]
_WRITTEN = "".join(f'<tool_call>{{"name": "pay", "arguments": {{"to": "{call["to"]}", "amount": {call["amount"]}}}}}</tool_call>'
                   for call in CALLS)
LINES = [
    (SUM, True, f"<think>{THOUGHT}</think>{SAID}"),
    (SUM, False, "Four."),
    (SHORT, True, "<think></think>2"),
    (PAYMENT, True, f"<think>Both.</think>{_WRITTEN}"),
]
