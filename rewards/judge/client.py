"""Asking a judge behind any OpenAI-compatible endpoint: bounded, patient, cached, and never guessing.

Whatever goes wrong is tried again until the attempts or the time run out, and then raised as `JudgeError`, so
that the sample is masked. Nothing here turns a failure into a score.
"""

import asyncio
import contextlib
import email.utils
import functools
import json
import os
import random
import secrets
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from rewards.judge.cache import VerdictCache, digest
from rewards.judge.prompts import Question
from rewards.judge.verdicts import BadVerdict, check, completion_text, read_verdict

URL_VARIABLE = "POSTTRAIN_JUDGE_URL"
KEY_VARIABLE = "POSTTRAIN_JUDGE_API_KEY"
CACHE_DIR = "~/.cache/posttrain/judge"
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
MAX_REPLY_BYTES = 1 << 20
#: A judge's own words are kept for the viewer, but not a book of them.
MAX_REASON = 2000
_OURS = {"model", "messages", "stream", "n"}


class JudgeError(RuntimeError):
    """The judge gave no verdict; the sample is to be left out, not scored."""


class _Failure(Exception):
    """One attempt failed and another may succeed.

    Attributes:
        wait_s: Seconds that the endpoint asked to be left alone.
    """

    def __init__(self, reason: str, wait_s: float = 0.0):
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Endpoint:
    """Where the judge is and how patiently it is asked.

    The API key is read from the environment variable POSTTRAIN_JUDGE_API_KEY, and sent only to the address
    that stands beside it in POSTTRAIN_JUDGE_URL, so that no configuration can send it elsewhere.

    Attributes:
        model: Name under which the endpoint serves the judge.
        base_url: Address up to and including `/v1`; "" for that of POSTTRAIN_JUDGE_URL.
        timeout_s: Seconds for one attempt. A verdict gets `max_attempts` times as many, pauses included.
        max_attempts: Attempts for one verdict.
        concurrency: Requests that one process sends at once.
        cache_dir: Folder of the verdicts given before; None for no cache.
        request: More fields of the request, such as `{"max_tokens": 4096}`; None takes a field out.

    Raises:
        ValueError: If a value cannot be used; the message names it.

    Example:
        Endpoint("Qwen/Qwen3-VL-32B-Instruct", "http://127.0.0.1:8000/v1")
    """

    model: str
    base_url: str = ""
    timeout_s: float = 60.0
    max_attempts: int = 5
    concurrency: int = 16
    cache_dir: str | None = CACHE_DIR
    request: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("timeout_s", "max_attempts", "concurrency"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number above 0")
        if owned := _OURS & set(self.request or {}):
            raise ValueError(f"request: {', '.join(sorted(owned))} cannot be changed")
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ValueError(f"base_url: {self.url[:200]!r} is no address: {error}") from None
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
            raise ValueError(
                f"base_url: {self.url[:200]!r} must look like http://host:port/v1, without name or password;"
                f" set it, or the environment variable {URL_VARIABLE}"
            )

    @property
    def url(self) -> str:
        """The address in use."""
        return (self.base_url or os.environ.get(URL_VARIABLE, "")).rstrip("/")

    def body(self, question: Question, nonce: str) -> dict[str, Any]:
        """The request: temperature 0 and a verdict of the right form, unless `request` says otherwise."""
        form = {"name": "verdict", "strict": True, "schema": question.schema}
        body: dict[str, Any] = {
            "model": self.model,
            "messages": question.messages(nonce),
            "temperature": 0,
            "max_tokens": 1024,
            "response_format": {"type": "json_schema", "json_schema": form},
        }
        return {key: value for key, value in (body | dict(self.request or {})).items() if value is not None}


@dataclass
class _Connection:
    """The connections of one event loop to one endpoint, and the right to use them."""

    http: httpx.AsyncClient
    slots: asyncio.Semaphore
    users: int = 0


#: One entry a loop; connections cannot outlive theirs, and the last user closes them.
_connections: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, int], _Connection]] = (
    weakref.WeakKeyDictionary()
)


async def ask(endpoint: Endpoint, question: Question) -> dict[str, Any]:
    """The judge's verdict, from the cache where the same was asked before.

    Args:
        endpoint: Where to ask.
        question: What to ask, with the form of the verdict.

    Returns:
        The verdict, which fits the question's schema, without its nonce.

    Raises:
        JudgeError: If there was none in time, with the reason of the last failure.
    """
    cache = VerdictCache(Path(endpoint.cache_dir).expanduser()) if endpoint.cache_dir else None
    material = [endpoint.url, endpoint.model, dict(endpoint.request or {}), question.identity()]
    key = await asyncio.to_thread(digest, material)  # images make it megabytes
    if cache and (known := await asyncio.to_thread(cache.get, key)):
        with contextlib.suppress(BadVerdict, TypeError):
            check({**known, "nonce": ""}, question.schema, "the verdict")
            return known
    async with _connection(endpoint) as connection, connection.slots:
        verdict = await _insist(connection.http, endpoint, question)
    verdict["reason"] = verdict["reason"][:MAX_REASON]
    if cache:
        await asyncio.to_thread(cache.put, key, verdict)
    return verdict


@contextlib.asynccontextmanager
async def _connection(endpoint: Endpoint) -> AsyncIterator[_Connection]:
    """This loop's connections to an endpoint, which are closed when nobody uses them any more."""
    mine = _connections.setdefault(asyncio.get_running_loop(), {})
    key = (endpoint.url, endpoint.concurrency)
    if key not in mine:
        url = httpx.URL(endpoint.url)
        http = httpx.AsyncClient(
            timeout=None,  # noqa: S113 (each attempt as a whole has a time limit)
            follow_redirects=False,
            verify=_certificates() if url.scheme == "https" else True,
            # Proxies of the environment are for the outside world.
            trust_env=url.host not in ("localhost", "127.0.0.1", "::1"),
        )
        mine[key] = _Connection(http, asyncio.Semaphore(endpoint.concurrency))
    connection = mine[key]
    connection.users += 1
    try:
        yield connection
    finally:
        connection.users -= 1
        if not connection.users:
            del mine[key]
            await connection.http.aclose()


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Reading the certificates takes longer than a request, so they are read once."""
    return httpx.create_ssl_context()


async def _insist(http: httpx.AsyncClient, endpoint: Endpoint, question: Question) -> dict[str, Any]:
    """Attempts with growing pauses, until one succeeds or the attempts or the time run out."""
    clock = asyncio.get_running_loop().time
    give_up = clock() + endpoint.timeout_s * endpoint.max_attempts
    attempt = 0
    while True:
        attempt += 1
        try:
            async with asyncio.timeout_at(min(clock() + endpoint.timeout_s, give_up)):
                return await _attempt(http, endpoint, question)
        except TimeoutError:
            failure = _Failure(f"no reply within {endpoint.timeout_s:g} s")
        except httpx.RequestError as error:
            failure = _Failure(str(error) or type(error).__name__)
        except BadVerdict as error:
            failure = _Failure(str(error))
        except _Failure as error:
            failure = error
        # Whoever was refused at the same moment must not come back at the same moment.
        jitter = random.uniform(0.5, 1.5) * min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
        pause = failure.wait_s + jitter
        if attempt >= endpoint.max_attempts or clock() + pause >= give_up:
            raise JudgeError(
                f"the judge {endpoint.model!r} at {endpoint.url} gave no verdict in {attempt} attempts;"
                f" the last: {failure}"
            ) from None
        await asyncio.sleep(pause)


async def _attempt(http: httpx.AsyncClient, endpoint: Endpoint, question: Question) -> dict[str, Any]:
    """Ask once, under a nonce that nobody has seen yet."""
    nonce = secrets.token_hex(8)
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if key := _api_key(endpoint):
        headers["Authorization"] = f"Bearer {key}"
    request = {"content": json.dumps(endpoint.body(question, nonce)), "headers": headers}
    async with http.stream("POST", f"{endpoint.url}/chat/completions", **request) as response:
        reply = bytearray()
        async for piece in response.aiter_raw():
            reply += piece
            if len(reply) > MAX_REPLY_BYTES:
                raise _Failure(f"the reply is larger than {MAX_REPLY_BYTES} bytes")
    if response.is_success:
        return read_verdict(completion_text(bytes(reply)), nonce, question.schema)
    status = response.status_code
    said = " ".join(reply.decode(errors="replace").replace(key or "\0", "…").split())[:300]
    if status in (408, 425, 429) or response.is_server_error:
        raise _Failure(f"{status}: {said}", _retry_after(response))
    raise JudgeError(f"the judge at {endpoint.url} refused the request: {status}: {said}{_remedy(status)}")


def _api_key(endpoint: Endpoint) -> str:
    """The key, where the endpoint is the one that it is for."""
    own = os.environ.get(URL_VARIABLE, "").rstrip("/") == endpoint.url
    return os.environ.get(KEY_VARIABLE, "").strip() if own else ""


def _remedy(status: int) -> str:
    if status in (401, 403):
        return f" (the key of {KEY_VARIABLE} is sent only to the address in {URL_VARIABLE}; set both)"
    if 300 <= status < 400:
        return " (redirects are not followed; set base_url to the final address)"
    if status == httpx.codes.BAD_REQUEST:
        return " (take out a field that it does not know, e.g. with request: {temperature: null})"
    return ""


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
