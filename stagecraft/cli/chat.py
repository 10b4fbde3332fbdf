"""`stagecraft chat`: talk to the served model in the terminal; answers stream."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from stagecraft.contract.address import without_version
from stagecraft.contract.errors import UserError

if TYPE_CHECKING:
    from openai import OpenAI

URL = "http://127.0.0.1:8000"


def main(arguments: Sequence[str]) -> None:
    """Answer one prompt, or converse until the end of input.

    Raises:
        UserError: the address is none, nothing answers there, or what answers refuses the request.
    """
    parser = argparse.ArgumentParser(prog="stagecraft chat", description=__doc__)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="ask this and end (default: converse)")
    parser.add_argument("--url", default=URL, help=f"where the model is served (default: {URL})")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer (default: 128)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 always gives the likeliest token (default: 0)")
    chosen = parser.parse_args(arguments)

    from openai import APIConnectionError, APIError, APIStatusError, OpenAI

    console = Console(highlight=False, markup=False, soft_wrap=True)
    address = without_version(chosen.url)
    # vLLM asks for a key only when it was started with one; then the client reads OPENAI_API_KEY.
    client = OpenAI(base_url=f"{address}/v1", max_retries=0, **_key())
    asking = {"max_tokens": chosen.max_tokens, "temperature": chosen.temperature}
    try:
        model = client.models.list().data[0].id
        if chosen.prompt is not None:
            say(client, model, [{"role": "user", "content": chosen.prompt}], asking, console)
        else:
            converse(client, model, asking, console)
    except APIConnectionError:
        raise UserError("no server answers", where=address, mend="start one with `stagecraft serve`, or give --url") from None
    except APIStatusError as error:
        mend = "set OPENAI_API_KEY to the server's key" if error.status_code == 401 else "ask something else or shorter"
        raise UserError(f"the server refuses: {error.message}", where=address, mend=mend) from None
    except (APIError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"no OpenAI-compatible server answers: {error}", where=address, mend="give another address with --url") from None


def converse(client: OpenAI, model: str, asking: dict[str, Any], console: Console) -> None:
    """Read prompts and stream answers, each with what went before, until the input ends; `/new` forgets what went before."""
    console.print(f"{model}: an empty line or Ctrl-D ends, /new starts afresh", style="dim")
    messages: list[dict[str, str]] = []
    while True:
        try:
            prompt = console.input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not prompt:
            return
        if prompt == "/new":
            messages = []
            continue
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": say(client, model, messages, asking, console)})


def say(client: OpenAI, model: str, messages: list[dict[str, str]], asking: dict[str, Any], console: Console) -> str:
    """Stream one answer to the console, thinking dimmed; returns it without the thinking."""
    answer, thinking = "", False
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, **asking):
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
        if reasoning := getattr(delta, "reasoning", None):
            console.print(reasoning, style="dim", end="")
            thinking = True
        if delta.content:
            if thinking:
                console.print()
                thinking = False
            console.print(delta.content, end="")
            answer += delta.content
    console.print()
    return answer


def _key() -> dict[str, str]:
    return {} if os.environ.get("OPENAI_API_KEY") else {"api_key": "none"}
