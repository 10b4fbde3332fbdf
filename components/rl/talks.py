"""One prompt and how it goes on: an answer that is judged, or a conversation with an environment, in the tokens that were drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from components.rl.params import EnvironmentServer
from components.rl.prompts import Row
from components.rl.rollouts import Sample
from stagecraft.data.chat import continuation, encode_prompt
from stagecraft.data.tokenizer import IM_END
from stagecraft.environments import split_thinking, verify
from stagecraft.environments.episode import conversation
from stagecraft.environments.library import environment
from stagecraft.environments.remote import RemoteEnvironment
from stagecraft.inference.engine import Completion

_AT_ONCE = 32  # requests to resource servers


class Talk(ABC):
    """What was asked, and all tokens since: the policy's own, with a loss, and those of others, without.

    Args:
        room: tokens that the whole of it may have.
        version: of the weights that it is begun with.

    Attributes:
        remote: a server is asked in it.
    """

    remote = False

    def __init__(self, row: Row, tokenizer: Any, room: int, version: int):
        self.row, self.tokenizer, self.room = row, tokenizer, room
        self.sample = Sample(id=row["id"], family=row["family"], asked=row["messages"][-1]["content"],
                             prompt=encode_prompt(tokenizer, row), version=version)

    @property
    def ids(self) -> list[int]:
        """What the policy is to go on from."""
        return self.sample.prompt + self.sample.tokens

    def hear(self, said: Completion) -> bool:
        """Take what the policy says; True if it is to speak again. Otherwise the sample is judged."""
        sample = self.sample
        self._add(said.token_ids, said.logprobs)
        sample.finished = said.finished
        return self._goes_on(self.tokenizer.decode(said.token_ids[:-1] if said.finished else said.token_ids))

    def _add(self, ids: list[int], logprobs: list[float] | None = None) -> None:
        """Tokens of the policy, or of others if they have no log-probabilities."""
        self.sample.tokens += ids
        self.sample.mask += [int(logprobs is not None)] * len(ids)
        self.sample.logprobs += logprobs or [0.0] * len(ids)

    @abstractmethod
    def _goes_on(self, text: str) -> bool: ...


class Answer(Talk):
    """One answer to a row of the corpus, judged by the verifier that the row names."""

    def _goes_on(self, text: str) -> bool:
        sample, reward = self.sample, verify(self.row, text, finished=self.sample.finished)
        sample.text, sample.reward, sample.parts = text, reward.score, reward.parts
        sample.malformed = sample.finished and malformed(self.row, text, reward.parts)
        return False


class Dialogue(Talk):
    """A conversation with an environment, turn by turn; one that is cut off, in a turn or for want of room, has no reward.

    Args:
        server: plays the environment; None: it is played in this process.
    """

    def __init__(self, row: Row, tokenizer: Any, room: int, version: int, server: EnvironmentServer | None = None):
        super().__init__(row, tokenizer, room, version)
        self.remote = server is not None
        if server:
            self._conversation = conversation(RemoteEnvironment(server.url), row["drawn"], server.turns)
        else:
            source = environment(row["family"])
            self._conversation = conversation(source, row["drawn"], source.turns)
        self._messages, _ = next(self._conversation)

    def _goes_on(self, text: str) -> bool:
        sample, heard = self.sample, len(self._messages)
        sample.text += text + IM_END * sample.finished
        if not sample.finished:
            return self._end([*self._messages, {"role": "assistant", "content": text}])
        try:
            self._messages, _ = self._conversation.send(text)
        except StopIteration as end:
            episode = end.value
            sample.messages, sample.reward, sample.parts = episode.messages, episode.reward.score, {"finished": 1.0, **episode.reward.parts}
            sample.malformed = episode.malformed or episode.invalid_calls > 0
            return False
        answered = continuation(self.tokenizer, self._messages[heard + 1:])
        if len(self.ids) + len(ids := self.tokenizer.encode(answered, add_special_tokens=False)) >= self.room:
            sample.finished = False
            return self._end(self._messages)
        self._add(ids)
        sample.text += answered
        return True

    def _end(self, messages: list[dict[str, Any]]) -> bool:
        self._conversation.close()
        self.sample.messages, self.sample.parts = messages, {"finished": 0.0}
        return False


def begin(row: Row, tokenizer: Any, room: int, version: int, servers: Mapping[str, EnvironmentServer]) -> Talk:
    """A talk on a prompt; `servers` play the environments that are not played in this process.

    Raises:
        UserError: from a server that does not answer.
    """
    if "drawn" in row:
        return Dialogue(row, tokenizer, room, version, servers.get(row["family"]))
    return Answer(row, tokenizer, room, version)


def begin_all(rows: Iterable[Row], tokenizer: Any, room: int, version: int, servers: Mapping[str, EnvironmentServer]) -> list[Talk]:
    """Talks on prompts, in their order; servers are asked side by side."""
    with ThreadPoolExecutor(_AT_ONCE if servers else 1) as pool:
        return list(pool.map(lambda row: begin(row, tokenizer, room, version, servers), rows))


def hear_all(talks: Iterable[Talk], said: Iterable[Completion]) -> list[bool]:
    """`Talk.hear` in each of them, in their order; servers are asked side by side."""
    talks = list(talks)
    with ThreadPoolExecutor(_AT_ONCE if any(talk.remote for talk in talks) else 1) as pool:
        return list(pool.map(lambda talk, each: talk.hear(each), talks, said))


def malformed(row: Row, text: str, parts: dict[str, float]) -> bool:
    """Thinking that cannot be read, or a tool call that cannot where one is asked for."""
    return split_thinking(text) is None or (row["verifier"]["kind"] == "tool_call" and not parts["format"])
