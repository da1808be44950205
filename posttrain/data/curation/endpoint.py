"""Asking a model behind an OpenAI-compatible endpoint: bounded, patient, cached, and never guessing.

The API key is read from the environment variable POSTTRAIN_ENDPOINT_API_KEY, and sent only to the address
that stands beside it in POSTTRAIN_ENDPOINT_URL, so that no recipe can send it elsewhere.
"""

import asyncio
import base64
import contextlib
import email.utils
import hashlib
import io
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from posttrain.config.curation import EndpointConfig
from posttrain.data.curation.answers import AnswerCache, digest
from posttrain.data.curation.outcomes import CurationError, RowError
from posttrain.images import ImageError, open_image
from posttrain.strict_json import JsonError, parse_json
from posttrain.types import Block, ImageRef, Message

URL_VARIABLE = "POSTTRAIN_ENDPOINT_URL"
KEY_VARIABLE = "POSTTRAIN_ENDPOINT_API_KEY"
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
MAX_REPLY_BYTES = 16 << 20
MAX_REQUEST_BYTES = 64 << 20
#: What no retry and no other row will change.
_HOPELESS = {301, 302, 303, 307, 308, 401, 403, 404, 405}

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: Its text; thinking that the server took out stands before it again, as <think>…</think>.
        truncated: Whether it was cut off at the token limit.
    """

    text: str
    truncated: bool = False


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled.

    Attributes:
        temperature: 0 is greedy.
        max_tokens: Longest answer, in tokens.
        seed: Different for each answer to one query.
    """

    temperature: float
    max_tokens: int
    seed: int


class BadReply(ValueError):
    """A reply that cannot be used; another attempt may bring a better one."""


class _Failure(Exception):
    """One attempt failed and another may succeed.

    Attributes:
        wait_s: Seconds that the endpoint asked to be left alone.
    """

    def __init__(self, reason: str, wait_s: float = 0.0):
        super().__init__(reason)
        self.wait_s = wait_s


class Endpoint:
    """One model; an async context manager within one event loop.

    Args:
        name: What the recipe calls it.
        config: Where it is.
        cache: The answers had before.

    Attributes:
        requests: Attempts that were sent.
        cached: Answers that the cache had.

    Raises:
        CurationError: If there is no address.
    """

    def __init__(self, name: str, config: EndpointConfig, cache: AnswerCache):
        self.name, self.config, self._cache = name, config, cache
        self.url = (config.base_url or os.environ.get(URL_VARIABLE, "")).rstrip("/")
        if not self.url:
            raise CurationError(f"endpoints.{name}: there is no address; set its base_url, or {URL_VARIABLE}")
        own = os.environ.get(URL_VARIABLE, "").rstrip("/") == self.url
        self._key = os.environ.get(KEY_VARIABLE, "").strip() if own else ""
        self._slots = asyncio.Semaphore(config.concurrency)
        host = httpx.URL(self.url).host
        self._http = httpx.AsyncClient(
            timeout=None,  # noqa: S113 (each attempt as a whole has a time limit)
            limits=httpx.Limits(max_connections=config.concurrency),
            follow_redirects=False,
            # Proxies of the environment are for the outside world.
            trust_env=host not in ("localhost", "127.0.0.1", "::1"),
        )
        self.requests = self.cached = 0

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, messages: Sequence[Message], sampling: Sampling, read: Callable[[Answer], T]) -> T:
        """The model's answer, from the cache where the same was asked before.

        Args:
            messages: The dialogue, images by reference.
            sampling: How to sample.
            read: Makes something of the answer; a `BadReply` of its makes another attempt.

        Raises:
            RowError: If there was no answer in time or this request was refused, with the last reason.
            CurationError: If the endpoint would refuse every request.
        """
        async with self._slots:  # also bounds the images that are in memory
            identity = await asyncio.to_thread(self._body, messages, sampling, _file_digest)
            key = digest([self.url, self.config.image_max_pixels, identity])
            if (known := self._cache.get(key)) is not None:
                with contextlib.suppress(BadReply, TypeError):
                    value = read(Answer(**known))
                    self.cached += 1
                    return value
            answer, value = await self._insist(messages, sampling, read)
        self._cache.put(key, asdict(answer))
        return value

    async def _insist(
        self, messages: Sequence[Message], sampling: Sampling, read: Callable[[Answer], T]
    ) -> tuple[Answer, T]:
        """Attempts with growing pauses, until one succeeds or they run out."""
        encoded = await asyncio.to_thread(self._encode, messages, sampling)
        limit = self.config.timeout_s
        for attempt in range(1, self.config.max_attempts + 1):
            try:
                async with asyncio.timeout(limit):
                    answer = await self._attempt(encoded)
                return answer, read(answer)
            except TimeoutError:
                failure = _Failure(f"no reply within {limit:g} s")
            except httpx.RequestError as error:
                failure = _Failure(str(error) or type(error).__name__)
            except BadReply as error:
                failure = _Failure(str(error))
            except _Failure as error:
                failure = error
            if attempt < self.config.max_attempts:
                # Whoever was refused at the same moment must not come back at the same moment.
                pause = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
                await asyncio.sleep(min(failure.wait_s, limit) + random.uniform(0.5, 1.5) * pause)
        raise RowError(
            f"endpoint {self.name!r} ({self.url}) gave no answer in {attempt} attempts; the last: {failure}"
        )

    async def _attempt(self, encoded: bytes) -> Answer:
        self.requests += 1
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        url = f"{self.url}/chat/completions"
        async with self._http.stream("POST", url, content=encoded, headers=headers) as response:
            reply = bytearray()
            async for piece in response.aiter_bytes():
                reply += piece
                if len(reply) > MAX_REPLY_BYTES:
                    raise _Failure(f"the reply is larger than {MAX_REPLY_BYTES:,} bytes")
        if response.is_success:
            return read_completion(bytes(reply))
        status = response.status_code
        said = " ".join(reply.decode(errors="replace").replace(self._key or "\0", "…").split())[:300]
        if status in (408, 425, 429) or response.is_server_error:
            raise _Failure(f"{status}: {said}", _retry_after(response))
        if status in _HOPELESS:
            raise CurationError(
                f"endpoint {self.name!r} at {url} refuses every request: {status}: {said}. Correct its"
                f" base_url and model; a key is read from {KEY_VARIABLE} and sent only to the address in"
                f" {URL_VARIABLE}"
            )
        raise RowError(f"endpoint {self.name!r} refused the request: {status}: {said}")

    def _encode(self, messages: Sequence[Message], sampling: Sampling) -> bytes:
        """The request's bytes.

        Raises:
            RowError: If an image cannot be used, or it is too large.
        """
        pixels = self.config.image_max_pixels
        try:
            body = self._body(messages, sampling, lambda image: data_url(image, pixels))
        except ImageError as error:
            raise RowError(str(error)) from None
        encoded = json.dumps(body).encode()
        if len(encoded) > MAX_REQUEST_BYTES:
            raise RowError(
                f"the request has {len(encoded):,} bytes, more than {MAX_REQUEST_BYTES:,};"
                " lower image_max_pixels"
            )
        return encoded

    def _body(
        self, messages: Sequence[Message], sampling: Sampling, encode: Callable[[ImageRef], str]
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.config.model, "messages": chat(messages, encode)}
        body |= asdict(sampling) | self.config.request
        return {key: value for key, value in body.items() if value is not None}


def chat(messages: Sequence[Message], encode: Callable[[ImageRef], str]) -> list[dict[str, Any]]:
    """Messages as a chat completion takes them.

    A tool's result becomes a user's turn within <tool_response>, as Qwen's templates write it: without the
    identifiers of the calls, which canonical rows do not have, endpoints refuse the role `tool`.

    Args:
        messages: The dialogue.
        encode: Makes an image's URL.

    Raises:
        RowError: If a block is neither a text nor an image.
    """
    found: list[dict[str, Any]] = []
    for message in messages:
        blocks = [_part(block, encode) for block in message.content]
        role = message.role
        if role == "tool":
            role, around = "user", ("<tool_response>\n", "\n</tool_response>")
            blocks = [{"type": "text", "text": around[0]}, *blocks, {"type": "text", "text": around[1]}]
        plain = all(block["type"] == "text" for block in blocks)
        found.append(
            {"role": role, "content": "".join(block["text"] for block in blocks) if plain else blocks}
        )
    return found


def _part(block: Block, encode: Callable[[ImageRef], str]) -> dict[str, Any]:
    if block.type == "text":
        return {"type": "text", "text": block.text}
    if block.image is None:
        raise RowError(f"a block of type {block.type!r} cannot be sent to an endpoint")
    return {"type": "image_url", "image_url": {"url": encode(block.image)}}


def data_url(image: ImageRef, max_pixels: int) -> str:
    """The image as a JPEG in base64, made smaller where it has too many pixels.

    Raises:
        ImageError: If it cannot be read.
    """
    picture = open_image(image.path)
    if (shrink := (max_pixels / (picture.width * picture.height)) ** 0.5) < 1:
        picture = picture.resize([max(1, int(side * shrink)) for side in picture.size])  # pyright: ignore
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=95, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def read_completion(reply: bytes) -> Answer:
    """What the model wrote, of a chat completion.

    Raises:
        BadReply: If it is none.
    """
    try:
        choice = parse_json(reply.decode())["choices"][0]
        message = choice["message"]
        content, finish = message.get("content"), choice.get("finish_reason")
        thinking = message.get("reasoning_content") or message.get("reasoning")
    except (UnicodeDecodeError, JsonError, KeyError, IndexError, TypeError, AttributeError):
        raise BadReply(f"the reply is no chat completion: {reply[:200].decode(errors='replace')!r}") from None
    if not isinstance(content, str) and not (content is None and isinstance(thinking, str)):
        raise BadReply("the chat completion has no text")
    text = content or ""
    if isinstance(thinking, str) and "</think>" not in text:
        text = f"<think>\n{thinking.strip()}\n</think>\n\n{text.strip()}"
    return Answer(text, truncated=finish == "length")


def _file_digest(image: ImageRef) -> str:
    """An image's content, for the cache's key, without decoding it."""
    try:
        with Path(image.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RowError(f"image {image.path} cannot be read: {error.strerror}") from None


def _retry_after(response: httpx.Response) -> float:
    """Seconds to wait according to `Retry-After`, a number or a date; 0 where there is none."""
    value = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if seconds < float("inf") else 0.0
