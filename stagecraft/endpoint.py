"""A model behind an OpenAI endpoint: its parameters, what a client of it is made with, and its failures as one line each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from stagecraft.contract.address import reach_loopback, with_host
from stagecraft.contract.bounded import AboveZero, Positive
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import params


@params
class EndpointParams:
    """Which model, and how it is asked.

    Args:
        url: base URL, `/v1` included; empty: there is none, and the rest does not matter.
        model: its name there.
        key_variable: environment variable with the key; empty: the endpoint asks for none.
        max_tokens: of a reply.
        concurrency: requests under way at a time.
    """

    # Which model it is, `model` says: the work goes on where the same one is asked elsewhere, or otherwise.
    PLACEMENT: ClassVar = ("url", "key_variable", "concurrency", "timeout_seconds")

    url: Annotated[str, Field(pattern=r"^(https?://\S+)?$"), AfterValidator(with_host)]
    model: str
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_0-9]*$")]
    max_tokens: Positive
    concurrency: Positive
    timeout_seconds: AboveZero

    def key(self, where: str) -> str:
        """The endpoint's key, or "" if it asks for none; `where` names this group of parameters.

        Raises:
            UserError: the variable named for it is not set, or holds what no header may.
        """
        # Without blanks around it: a key that was read from a file ends in a newline.
        found = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        if self.key_variable and not found:
            raise UserError(f"the environment variable {self.key_variable} is not set", where=f"{where}.key_variable",
                            mend="export the endpoint's key in it, or set key_variable to \"\" if it needs none")
        if not re.fullmatch("[!-~]*", found):
            raise UserError(f"the environment variable {self.key_variable} holds no key: one is printable ASCII without blanks",
                            where=f"{where}.key_variable", mend="export the endpoint's key in it, and nothing else")
        return found


class Endpoint:
    """One that is asked.

    Args:
        where: names the group of parameters.
        instead: what does the work where `url` is empty.
        max_retries: of a request that fails with 429, 5xx or on the way, with growing pauses.

    Attributes:
        client: arguments of `OpenAI` and `AsyncOpenAI`.

    Raises:
        UserError: as `EndpointParams.key`.
    """

    def __init__(self, params: EndpointParams, where: str, instead: str, max_retries: int):
        self._where, self._instead, self._key = where, instead, params.key(where)
        reach_loopback()  # it may be one of this machine
        self.client = {"base_url": params.url, "api_key": self._key or "none", "timeout": params.timeout_seconds,
                       "max_retries": max_retries}

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Around one request and the reading of its reply.

        Raises:
            UserError: the endpoint cannot be reached, refuses, still fails after `max_retries`, or is none of OpenAI's kind.
        """
        from openai import APIConnectionError, APIError, APIStatusError, AuthenticationError, PermissionDeniedError  # slow to import

        url, where, again = self.client["base_url"], self._where, "what is done is kept: run again when it answers"
        try:
            yield
        except APIConnectionError as error:
            raise UserError(f"the endpoint cannot be reached: {self._told(error.__cause__ or error)}", where=url,
                            mend=f"correct {where}.url, or leave it empty for {self._instead}; {again}") from None
        except (AuthenticationError, PermissionDeniedError) as error:
            raise UserError(f"the endpoint refuses the key: {self._told(error.message)}", where=url,
                            mend=f"put a valid key into the environment variable that {where}.key_variable names") from None
        except APIStatusError as error:
            told = f"the endpoint answers {error.status_code}: {self._told(error.message)}"
            mend = again if error.status_code in (408, 409, 429) or error.status_code >= 500 else f"correct {where}.url or .model"
            raise UserError(told, where=url, mend=mend) from None
        except (APIError, ValueError, IndexError, AttributeError, TypeError) as error:
            raise UserError(f"what answers is no OpenAI endpoint: {self._told(error)}", where=url, mend=f"correct {where}.url") from None

    def _told(self, said: object) -> str:
        """What was said, but for the key, which an endpoint may quote."""
        return str(said).replace(self._key, "...") if self._key else str(said)
