"""Asking a judge behind any OpenAI-compatible endpoint: bounded, patient, cached, and never guessing.

Whatever goes wrong is tried again until the attempts or the time run out, and then raised as `JudgeError`, so
that the sample is masked. Nothing here turns a failure into a score.
"""

import asyncio
import contextlib
import json
import secrets
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from posttrain.chat_endpoint import ChatClient, ChatError, RefusedError, digest
from posttrain.endpoint_variables import Variables
from rewards.budget import Purse, as_budget
from rewards.judge.cache import VerdictCache
from rewards.judge.prompts import JudgeQuestion
from rewards.judge.verdicts import (
    BadVerdict,
    Verdict,
    check,
    completion_text,
    completion_usage,
    read_verdict,
)

URL_VARIABLE = "POSTTRAIN_JUDGE_URL"
KEY_VARIABLE = "POSTTRAIN_JUDGE_API_KEY"
VARIABLES = Variables(URL_VARIABLE, KEY_VARIABLE)
CACHE_DIR = "~/.cache/posttrain/judge"
MAX_REPLY_BYTES = 1 << 20
#: Most tokens of a reply, where `request` does not say.
MAX_TOKENS = 1024
#: A judge's own words are kept for the viewer, but not a book of them.
MAX_REASON = 2000
_OURS = {"model", "messages", "stream", "n"}


class JudgeError(RuntimeError):
    """The judge gave no verdict; the sample is to be left out, not scored."""


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
        budget: What may be spent, as `rewards.budget.Budget` has it; a run sets it from its own
            `judge_budget`. None for no limit, and nothing is counted.

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
    request: Mapping[str, object] | None = None
    budget: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        for name in ("timeout_s", "max_attempts", "concurrency"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number above 0")
        if owned := _OURS & set(self.request or {}):
            raise ValueError(f"request: {', '.join(sorted(owned))} cannot be changed")
        if self.budget is not None:
            as_budget(self.budget)
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
        return VARIABLES.address(self.base_url)

    def body(self, question: JudgeQuestion, nonce: str) -> dict[str, object]:
        """Build the request: temperature 0, a verdict of the right form, unless `request` says otherwise."""
        form = {"name": "verdict", "strict": True, "schema": question.schema}
        body: dict[str, object] = {
            "model": self.model,
            "messages": question.messages(nonce),
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "response_format": {"type": "json_schema", "json_schema": form},
        }
        return {key: value for key, value in (body | dict(self.request or {})).items() if value is not None}


@dataclass
class _Connection:
    """One event loop's connections to one endpoint, and how many calls use them."""

    client: ChatClient
    users: int = 0


#: One entry a loop; connections cannot outlive theirs, and the last user closes them.
_connections: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[object, ...], _Connection]] = (
    weakref.WeakKeyDictionary()
)


async def ask(endpoint: Endpoint, question: JudgeQuestion) -> Verdict:
    """Ask the judge for its verdict; take it from the cache where the same was asked before.

    Args:
        endpoint: Where to ask.
        question: What to ask, with the form of the verdict.

    Returns:
        The verdict, which fits the question's schema, without its nonce.

    Raises:
        JudgeError: If there was none in time, with the reason of the last failure.
        StopScoring: If the budget is spent, and the run is then to stop.
        LeftOut: If it is spent, and judges are then left out.
    """
    purse = Purse(as_budget(endpoint.budget), endpoint.model) if endpoint.budget is not None else None
    cache = VerdictCache(Path(endpoint.cache_dir).expanduser()) if endpoint.cache_dir else None
    material = [endpoint.url, endpoint.model, dict(endpoint.request or {}), question.identity()]
    key = await asyncio.to_thread(digest, material)  # images make it megabytes
    known = await asyncio.to_thread(cache.get, key) if cache else None
    if isinstance(known, dict):
        with contextlib.suppress(BadVerdict):
            check({**known, "nonce": ""}, question.schema, "the verdict")
            if purse:
                await asyncio.to_thread(purse.found)
            return known
    try:
        async with _connection(endpoint) as client:
            verdict = await client.ask(lambda: _attempt(endpoint, question, purse))
    except RefusedError as error:
        raise JudgeError(f"{error}{_remedy(error.status)}") from None
    except ChatError as error:
        raise JudgeError(str(error)) from None
    finally:
        if purse:
            purse.end()
    verdict["reason"] = verdict["reason"][:MAX_REASON]
    if cache:
        await asyncio.to_thread(cache.put, key, verdict)
    return verdict


@contextlib.asynccontextmanager
async def _connection(endpoint: Endpoint) -> AsyncIterator[ChatClient]:
    """Lend this loop's client of an endpoint, and close it when nobody uses it any more."""
    mine = _connections.setdefault(asyncio.get_running_loop(), {})
    patience = {
        "timeout_s": endpoint.timeout_s,
        "max_attempts": endpoint.max_attempts,
        "concurrency": endpoint.concurrency,
    }
    url, api_key = endpoint.url, VARIABLES.api_key(endpoint.url)
    key = (url, api_key, endpoint.model, *patience.values())
    if key not in mine:
        label = f"the judge {endpoint.model!r} at {url}"
        client = ChatClient(label, url, api_key, max_reply_bytes=MAX_REPLY_BYTES, **patience)
        mine[key] = _Connection(client)
    connection = mine[key]
    connection.users += 1
    try:
        yield connection.client
    finally:
        connection.users -= 1
        if not connection.users:
            del mine[key]
            await connection.client.close()


def _attempt(
    endpoint: Endpoint, question: JudgeQuestion, purse: Purse | None
) -> tuple[bytes, Callable[[bytes], Verdict]]:
    """Write one request, under a nonce that nobody has seen yet; return it and what reads the verdict."""
    nonce = secrets.token_hex(8)
    body = endpoint.body(question, nonce)
    if purse:
        most = body.get("max_tokens") or body.get("max_completion_tokens")
        purse.take(question.letters, most if isinstance(most, int) else MAX_TOKENS)

    def read(reply: bytes) -> Verdict:
        if purse:
            purse.pay(completion_usage(reply))
        return read_verdict(completion_text(reply), nonce, question.schema)

    return json.dumps(body).encode(), read


def _remedy(status: int) -> str:
    if status in (401, 403):
        return f" (the key of {KEY_VARIABLE} is sent only to the address in {URL_VARIABLE}; set both)"
    if 300 <= status < 400:
        return " (redirects are not followed; set base_url to the final address)"
    if status == httpx.codes.BAD_REQUEST:
        return " (take out a field that it does not know, e.g. with request: {temperature: null})"
    return ""
