"""`stagecraft serve`: keep a model up on vLLM's OpenAI-compatible API, on the loopback interface, until interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stagecraft.contract.errors import UserError
from stagecraft.contract.params import params_path, parse, read_profile
from stagecraft.contract.registry import read_promotion
from stagecraft.contract.stages import PATHS
from stagecraft.inference.server import Server, ServerDiedError
from stagecraft.inference.server_settings import Settings

PORT = 8000
LOG = Path(".work/server.log")


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C.

    Returns:
        0 when it was interrupted, 1 when the server died; its last lines are then on standard error.

    Raises:
        UserError: there is no promoted model, the directory is no checkpoint, the port is taken.
    """
    parser = argparse.ArgumentParser(prog="stagecraft serve", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="a checkpoint directory (default: the promoted model)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port on the loopback interface (default: {PORT})")
    parser.add_argument("--draft-tokens", type=int, metavar="N", help="tokens drafted by multi-token prediction; 0 turns it off "
                                                                      "(default: serve.server.draft_tokens of the parameters)")
    chosen = parser.parse_args(arguments)
    server = Server(chosen.model or promoted_model(), settings(chosen.draft_tokens), LOG, port=chosen.port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"{server.command}\nstarting (log: {LOG}) ...", flush=True)
    try:
        with server:
            print(f"serving {server.model} as {server.settings.name!r} on {server.url}/v1 (Ctrl-C ends it)\n"
                  f"talk to it: stagecraft chat{'' if server.port == PORT else f' --url {server.url}'}", flush=True)
            server.watch()
    except KeyboardInterrupt:
        return 0
    except ServerDiedError as error:
        print(error, file=sys.stderr)
        return 1


def promoted_model() -> Path:
    """The artifact that the evaluation promoted.

    Raises:
        UserError: there is no verdict, or nothing was promoted.
    """
    verdict = read_promotion(PATHS["evaluation"])
    name = verdict.get("promoted")
    if name not in PATHS:
        raise UserError(f"there is no promoted model: {verdict.get('reason')}", where=str(PATHS["evaluation"] / "promotion.json"),
                        mend="name a checkpoint to serve: stagecraft serve artifacts/aligned")
    return PATHS[name]


def settings(draft_tokens: int | None) -> Settings:
    """The settings of the profile in force, the number of draft tokens apart if it is given.

    Raises:
        UserError: the profile cannot be read, or a value in it or the given number is impossible.
    """
    where = f"{params_path()}: serve.server"
    section = (read_profile().get("serve") or {}).get("server")
    if not isinstance(section, dict):
        raise UserError("no such section", where=where, mend="add it; the repository's params.yaml shows every key")
    chosen = parse(Settings, section, where)
    if draft_tokens is None:
        return chosen
    try:
        return replace(chosen, draft_tokens=draft_tokens)
    except ValueError:
        raise UserError(f"cannot draft {draft_tokens} tokens", where="--draft-tokens", mend="give 0 to 8") from None
