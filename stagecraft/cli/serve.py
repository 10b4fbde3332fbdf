"""`stagecraft serve`: keep a model up on vLLM's OpenAI-compatible API, on the loopback interface, until interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stagecraft.cli.model import find
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import params_path, parse, read_profile, section_of
from stagecraft.inference.hardware import detect
from stagecraft.inference.keeper import keep_up
from stagecraft.inference.server import Server, ServerDiedError, check_checkpoint
from stagecraft.inference.server_settings import Settings, fitting

PORT = 8000
LOG = Path(".work/server.log")
DRAIN_SECONDS = 30


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C or SIGTERM; requests under way then get time to finish.

    Returns:
        0 when it was told to end, 1 when the server died too often; its last lines are then on standard error.

    Raises:
        UserError: there is no such model, it is no checkpoint or not what its manifest says, it does not fit, or the port is taken.
    """
    chosen = _parser().parse_args(arguments)
    if chosen.drain_seconds < 0:
        raise UserError(f"{chosen.drain_seconds} is no time to finish in", where="--drain-seconds", mend="give 0 or more")
    found, hardware = find(chosen.model, chosen.rev), detect()
    check_checkpoint(found.path)
    server = Server(found.path, fitting(settings(chosen.draft_tokens), found.path, bool(chosen.draft_tokens)), LOG, chosen.port, hardware,
                    chosen.drain_seconds)
    server.log = LOG.with_stem(f"{LOG.stem}-{server.port}")  # one each for servers side by side; --port 0 is a number by now
    told = Told()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
    print(f"{found.origin}: {f'digest {found.digest[:16]}, every file verified' if found.digest else 'no manifest, nothing to verify by'}\n"
          f"{server.command}\nstarting on {hardware.count} x {hardware.name} (log: {server.log}) ...", flush=True)
    try:
        keep_up(server, lambda: _say_up(server), _say_down)
    except KeyboardInterrupt:
        return 0
    except ServerDiedError as error:
        print(error, file=sys.stderr)
        return 1


class Told:
    """What a signal does: the first ends the serving, the second the time that requests under way are given."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, number: int, frame: object) -> None:
        self.times += 1
        if self.times == 1:
            print("ending once the requests under way are done (once more: at once)", flush=True)
        raise KeyboardInterrupt


def settings(draft_tokens: int | None) -> Settings:
    """The settings of the profile in force, the number of draft tokens apart if it is given.

    Raises:
        UserError: the profile cannot be read, or a value in it or the given number is impossible.
    """
    shown = str(params_path())
    section = section_of(section_of(read_profile(), "serve", shown), "server", f"{shown}: serve")
    chosen = parse(Settings, section, f"{shown}: serve.server")
    if draft_tokens is None:
        return chosen
    try:
        return replace(chosen, draft_tokens=draft_tokens)
    except ValueError:
        raise UserError(f"cannot draft {draft_tokens} tokens", where="--draft-tokens", mend="give 0 to 8") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stagecraft serve", description=__doc__)
    parser.add_argument("model", nargs="?", metavar="MODEL",
                        help="a checkpoint directory, an alias of the registry (champion, models:/stagecraft@champion), or "
                             "REVISION:PATH, an output of DVC as it was at a revision of git (default: the promoted model)")
    parser.add_argument("--rev", metavar="REVISION", help="take MODEL, an artifact's name or path, as it was at this revision of git")
    parser.add_argument("--port", type=int, default=PORT, help=f"port on the loopback interface (default: {PORT})")
    parser.add_argument("--draft-tokens", type=int, metavar="N", help="tokens drafted by multi-token prediction; 0 turns it off "
                                                                      "(default: serve.server.draft_tokens of the parameters)")
    parser.add_argument("--drain-seconds", type=int, default=DRAIN_SECONDS, metavar="S",
                        help=f"what requests under way are given to finish at the end (default: {DRAIN_SECONDS})")
    return parser


def _say_up(server: Server) -> None:
    print(f"serving {server.model} as {server.settings.name!r} on {server.url}/v1 (Ctrl-C ends it)\n"
          f"talk to it: stagecraft chat{'' if server.port == PORT else f' --url {server.url}'}", flush=True)


def _say_down(error: ServerDiedError) -> None:
    print(f"{str(error).splitlines()[0].partition(';')[0]}; starting it again", file=sys.stderr, flush=True)
