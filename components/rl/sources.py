"""Where the trainer gets its completions: from a generator in this process, in turn, or from one beside it, at the same time.

Both give step k completions that were begun with weights at most `staleness` optimizer steps old:

- in turn (0): step k is drawn with the weights after k steps;
- beside (1): while the trainer takes step k, the generator draws step k + 1 with the weights after k steps. The result is the same at
  every run. With `in_flight` newer weights reach it between two tokens, and the rest of each completion is drawn with them, on top of the
  states and keys of the older ones; then timing shows in the result.
"""

from __future__ import annotations

import signal
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.multiprocessing
from torch import Tensor

from components.rl.generator import Generator
from components.rl.params import Params
from components.rl.rlhf.judge import Judge
from components.rl.rollouts import Draw, draw_path, read_draw
from stagecraft.contract.errors import UserError

Weights = dict[str, Tensor]


class InTurn:
    """A generator in this process.

    Args:
        kept: directory for finished steps.
        step, weights: steps that are done already, and the weights after them.
    """

    def __init__(self, params: Params, corpus: Path, model: Path, judge: Judge | None, kept: Path, step: int,
                 weights: Weights):
        self._generator = Generator(params, corpus, model, judge, kept)
        if step:
            self._generator.update(step, weights.items())
        else:
            self._generator.answer_heldout()

    def take(self, step: int) -> Draw:
        """The completions of a step."""
        return self._generator.draw(step)

    def finish(self, step: int) -> None:
        """Wait until the step after a checkpoint can be had again after a kill: it is drawn from the checkpoint's own weights."""

    def hand_over(self, version: int, weights: Weights) -> None:
        """The weights after `version` steps."""
        self._generator.update(version, weights.items())

    def close(self) -> None:
        """After the last step: have the held-out prompts answered, free the engine."""
        self._generator.answer_heldout()
        self._generator.close()


class Beside:
    """A generator in a process of its own, one step ahead; arguments as above. It ends when this process does.

    Weights lie in shared memory, one slot for odd and one for even versions: version v + 2 is written once step v + 1 was taken, and
    that step was begun after version v had been read. Completions come as files.
    """

    def __init__(self, params: Params, corpus: Path, model: Path, judge: Judge | None, kept: Path, step: int,
                 weights: Weights):
        context = torch.multiprocessing.get_context("spawn")
        self._slots = [{name: torch.empty_like(tensor).share_memory_() for name, tensor in weights.items()} for _ in range(2)]
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_generate, args=(other, self._slots, params, corpus, model, judge, kept, step), daemon=True)
        self._process.start()
        other.close()
        self._kept, self._drawn, self._steps = kept, step - 1, params.steps
        self.hand_over(step, weights)

    def take(self, step: int) -> Draw:
        """The completions of a step, once they are there.

        Raises:
            UserError: the generator's, or it was lost.
        """
        self.finish(step)
        return read_draw(draw_path(self._kept, step))

    def finish(self, step: int) -> None:
        """Wait until a step is drawn."""
        while self._drawn < step:
            try:
                kind, *content = self._pipe.recv()
            except (EOFError, ConnectionResetError):
                self._process.join()
                raise UserError(f"the generator was lost (exit code {self._process.exitcode})", where="rl",
                                mend="run the stage again: it goes on from its last checkpoint") from None
            if kind == "mistake":
                raise UserError(content[0], where=content[1], mend=content[2])
            if kind == "failure":
                raise RuntimeError(f"the generator failed:\n{content[0]}")
            self._drawn = content[0]

    def hand_over(self, version: int, weights: Weights) -> None:
        """The weights after `version` steps."""
        for name, tensor in weights.items():
            self._slots[version % 2][name].copy_(tensor)
        try:
            self._pipe.send(version)
        except (BrokenPipeError, ConnectionResetError):
            self.finish(version)  # says why it has ended

    def close(self) -> None:
        """After the last step: have the held-out prompts answered, end the process."""
        self.finish(self._steps)
        self._pipe.close()
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _generate(pipe: Connection, slots: list[Weights], params: Params, corpus: Path, model: Path, judge: Judge | None, kept: Path,
              first: int) -> None:
    """The other process: draw step after step, each once the weights of the step before it are there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's: when it ends, so does this
    try:
        generator = Generator(params, corpus, model, judge, kept)

        def receive() -> None:
            version = pipe.recv()
            if version:  # 0 is what the engine has loaded
                generator.update(version, slots[version % 2].items())

        receive()
        if not first:
            generator.answer_heldout()
        for step in range(first, params.steps):
            while generator.version < step - 1:
                receive()
            between = (lambda: pipe.poll() and receive()) if params.in_flight else None
            generator.draw(step, between)
            pipe.send(("drawn", step))
        while generator.version < params.steps:
            receive()
        generator.answer_heldout()
        pipe.send(("drawn", params.steps))
        while True:
            receive()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the trainer has ended
    except UserError as mistake:
        pipe.send(("mistake", mistake.what, mistake.where, mistake.mend))
    except Exception:
        pipe.send(("failure", traceback.format_exc()))


SOURCES = (InTurn, Beside)  # by staleness
