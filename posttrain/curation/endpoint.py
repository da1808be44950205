"""A curation's models behind OpenAI-compatible endpoints.

The API key is read from the environment variable POSTTRAIN_ENDPOINT_API_KEY, and sent only to the address
that stands beside it in POSTTRAIN_ENDPOINT_URL, so that no recipe can send it elsewhere.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

from posttrain.chat_endpoint import (
    ChatClient,
    ChatError,
    Completion,
    RefusedError,
    data_url,
    read_completion,
)
from posttrain.config.endpoints import EndpointConfig
from posttrain.curation.asking import Sampling, chat, file_digest
from posttrain.curation.checks import VARIABLES, missing_address
from posttrain.curation.outcomes import CurationError, RowError
from posttrain.files.strict_json import JsonObject
from posttrain.media.images import ImageError
from posttrain.types import ImageRef, Message

MAX_REPLY_BYTES = 16 << 20
MAX_REQUEST_BYTES = 64 << 20
#: HTTP statuses that every other request would get as well.
_HOPELESS = {301, 302, 303, 307, 308, 401, 403, 404, 405}

T = TypeVar("T")


class Endpoint:
    """A model behind an endpoint (see `Model`); an async context manager within one event loop.

    Args:
        name: Its name in the recipe.
        config: Its address and settings.

    Raises:
        CurationError: If there is no address.
    """

    def __init__(self, name: str, config: EndpointConfig):
        self._config = config
        if reason := missing_address(config):
            raise CurationError(f"endpoints.{name}: {reason}")
        self._url = VARIABLES.address(config.base_url)
        self._client = ChatClient(
            f"endpoint {name!r} ({self._url})",
            self._url,
            VARIABLES.api_key(self._url),
            timeout_s=config.timeout_s,
            max_attempts=config.max_attempts,
            concurrency=config.concurrency,
            max_reply_bytes=MAX_REPLY_BYTES,
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    def identity(self, messages: Sequence[Message], sampling: Sampling) -> object:
        """Return address and request, with the hashes of images in the place of their pixels."""
        return [self._url, self._config.image_max_pixels, self._body(messages, sampling, file_digest)]

    async def answer(
        self, messages: Sequence[Message], sampling: Sampling, read: Callable[[Completion], T]
    ) -> tuple[Completion, T]:
        """Ask until `read` accepts an answer, or the attempts run out.

        Returns:
            The answer, and the value that `read` returned for it.

        Raises:
            RowError: If there was no answer in time, or this request was refused; with the last reason.
            CurationError: If the endpoint would refuse every request.
        """

        def take(reply: bytes) -> tuple[Completion, T]:
            completion = read_completion(reply)
            return completion, read(completion)

        try:
            return await self._client.ask(lambda: (self._encode(messages, sampling), take))
        except RefusedError as error:
            if error.status not in _HOPELESS:
                raise RowError(str(error)) from None
            raise CurationError(
                f"{error}. So will every request be: correct base_url and model; a key is read from"
                f" {VARIABLES.key} and sent only to the address in {VARIABLES.url}"
            ) from None
        except ChatError as error:
            raise RowError(str(error)) from None

    def _encode(self, messages: Sequence[Message], sampling: Sampling) -> bytes:
        """Make the bytes of a request.

        Raises:
            RowError: If an image cannot be used, or the request is too large.
        """
        url = functools.partial(data_url, max_pixels=self._config.image_max_pixels)
        try:
            encoded = json.dumps(self._body(messages, sampling, url)).encode()
        except ImageError as error:
            raise RowError(str(error)) from None
        if len(encoded) > MAX_REQUEST_BYTES:
            raise RowError(
                f"the request has {len(encoded):,} bytes, more than {MAX_REQUEST_BYTES:,};"
                " lower image_max_pixels"
            )
        return encoded

    def _body(
        self, messages: Sequence[Message], sampling: Sampling, encode: Callable[[ImageRef], str]
    ) -> JsonObject:
        """Make the body of a request."""
        body: JsonObject = {"model": self._config.model, "messages": chat(messages, encode)}
        body |= asdict(sampling) | self._config.request
        return {key: value for key, value in body.items() if value is not None}
