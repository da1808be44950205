"""Rewards over HTTP.

    POST /v1/score    {"rewards": [{name, weight, params, only_if}], "inputs": […], "groups": […]?}
                      → {"results": […]}
    GET  /v1/rewards  what is served, with ranges
    GET  /health      whether it serves
    GET  /metrics     counts, in Prometheus' text format

The server runs the rewards that it was started with and no others: a client names rewards, it cannot bring
code. Scoring happens in the processes of `rewards.workers`, so a reward that hangs or crashes leaves the
server unharmed.
"""

import asyncio
import dataclasses
import gc
import hmac
import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect

from posttrain.reward_spec import RewardSpec
from rewards import wire
from rewards.sdk import ParameterError, RewardError, StopScoring
from rewards.serving.admission import ImageAdmission
from rewards.serving.config import PARENT_VARIABLE, TOKEN_VARIABLE, ServerConfig
from rewards.workers.scorer import PendingScores, Scorer

#: Beyond so many requests at once, even `/health` answers 503.
MAX_CONNECTIONS = 256
SHUTDOWN_S = 5
SMALL_BODY = 1 << 15

T = TypeVar("T")


class ServerMetrics:
    """What `/metrics` shows: requests and their times, and what the scorer counts."""

    def __init__(self, scorer: Scorer):
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "posttrain_rewards_request_seconds", "Time to answer /v1/score.", registry=self.registry
        )
        self.refused = Counter("posttrain_rewards_refused", "Requests answered 429.", registry=self.registry)
        self.registry.register(_ScorerCollector(scorer))


class _ScorerCollector(Collector):
    """Reads a scorer's counts when they are asked for."""

    def __init__(self, scorer: Scorer):
        self._scorer = scorer

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "posttrain_rewards_queued", "Samples not scored yet.", value=self._scorer.queued
        )
        for name in ("samples", "errors", "hangs", "crashes", "recycled"):
            yield CounterMetricFamily(
                f"posttrain_rewards_{name}", f"{name.capitalize()} so far.", value=self._scorer.counts[name]
            )


def create_app(scorer: Scorer, config: ServerConfig, token: str = "") -> FastAPI:
    """Build the HTTP interface to a scorer; a `ParameterError` says what the configuration fixes in vain.

    Args:
        scorer: Where rewards run; the caller closes it.
        config: What is served, and the limits.
        token: Bearer token that every route asks for; "" for none.
    """
    scorer.check_params(config.specs, complete=False)
    guarded = {loaded["name"]: set(loaded["guarded"]) for loaded in scorer.rewards}
    metrics = ServerMetrics(scorer)

    # Generated pages would be routes without a token.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(_authoriser(token))])
    read_body = _body_reader(config)
    turns = asyncio.Semaphore()
    image_roots = [root.resolve() for root in config.image_roots]

    def begin(body: bytes, images: ImageAdmission) -> PendingScores:
        """Read a request and queue its episodes."""
        specs, inputs, groups = wire.read_score_request(body)
        scorer.check(specs)
        specs = [_with_fixed(spec, config, set() if token else guarded[spec.name]) for spec in specs]
        if len(inputs) > config.queued:
            raise HTTPException(413, f"more than {config.queued} inputs; send them in several requests")
        if scorer.queued + len(inputs) > config.queued:
            metrics.refused.inc()
            raise HTTPException(429, f"{scorer.queued} samples are waiting already", {"Retry-After": "1"})
        return scorer.submit(specs, images.admit(inputs), groups)

    @app.post("/v1/score")
    async def score(body: Annotated[bytes, Depends(read_body)]) -> Response:
        with metrics.requests.time(), ImageAdmission(image_roots) as images:
            async with turns:  # one in each pass of the event loop: /health waits for one, not for all
                await asyncio.sleep(0)
            try:
                scoring = await _run(len(body), begin, body, images)
            except (wire.WireError, RewardError) as error:
                status = 422 if isinstance(error, ParameterError) else 400
                raise HTTPException(status, _printable(error)) from None
            await asyncio.wrap_future(scoring.finished)
            return _json(await _run(len(body), _verdicts, scoring))

    @app.get("/v1/rewards")
    async def served() -> Response:
        return _json_of({"rewards": scorer.rewards})

    @app.get("/health")
    async def health() -> Response:
        return _json_of({"status": "ok", "queued": scorer.queued})

    @app.get("/metrics")
    async def counted() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def serve(
    config: ServerConfig,
    host: str = "127.0.0.1",
    port: int = 8900,
    token: str = "",
    url_file: Path | None = None,
) -> None:
    """Serve rewards until a signal, or the end of the process that started this one, says stop.

    Args:
        config: What is served, and the limits.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        token: Bearer token that clients must send; needed beyond loopback.
        url_file: Where to write the server's address once it can be reached.

    Raises:
        RewardError: If the address cannot be used, or needs a token, or a fixed parameter is not taken.
        PluginError: If a reference does not lead to a reward.
    """
    check_address(host, token)
    if parent := os.environ.get(PARENT_VARIABLE):
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise RewardError(f"rewards serve: cannot listen on {host} port {port}: {error}") from None
    with listener, start_scorer(config) as scorer:
        settings = uvicorn.Config(
            create_app(scorer, config, token),
            log_level="warning",
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        if url_file:
            announce(url_file, host, listener.getsockname()[1])
        gc.collect()
        gc.freeze()  # what is loaded stays: going through it again and again held requests up for 50 ms
        uvicorn.Server(settings).run(sockets=[listener])


def start_scorer(config: ServerConfig) -> Scorer:
    """Start the processes that score for a server."""
    return Scorer(
        config.references,
        config.workers,
        config.deadline_s,
        config.base_dir,
        judge_budget=config.judge_budget,
    )


def check_address(host: str, token: str) -> None:
    """Refuse to be reached from other machines without a token.

    Raises:
        RewardError: Saying what to do.
    """
    if not token and not _is_loopback(host):
        raise RewardError(
            f"rewards serve: {host} can be reached from other machines, so a token is needed: set"
            f" {TOKEN_VARIABLE} here and for the clients, or listen on 127.0.0.1"
        )


def announce(url_file: Path, host: str, port: int) -> None:
    """Write the address so that a reader sees all of it or nothing."""
    unfinished = url_file.with_name(f".{url_file.name}.tmp")
    unfinished.write_text(
        f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", encoding="utf-8"
    )
    unfinished.replace(url_file)


def _with_fixed(spec: RewardSpec, config: ServerConfig, guarded: set[str]) -> RewardSpec:
    """Return the reward with the parameters that the server's configuration fixes.

    Raises:
        RewardError: If the client sets one of them, or one that names files or addresses and may not.
    """
    fixed = next(served.params for served in config.rewards if served.name == spec.name)
    for name in spec.params:
        if name in fixed:
            raise RewardError(f"reward {spec.name!r}: {name!r} is fixed by this server's configuration")
        if name in guarded:
            raise RewardError(
                f"reward {spec.name!r}: {name!r} names a file or an address, so it is taken only from the"
                " server's configuration, or from clients that show a token"
            )
    return dataclasses.replace(spec, params={**fixed, **spec.params})


def _verdicts(scoring: PendingScores) -> bytes:
    """Write the verdicts of episodes that are scored."""
    try:
        return wire.dumps({"results": [wire.result_to_json(result) for result in scoring.results()]})
    except StopScoring as error:
        raise HTTPException(402, _printable(error)) from None


def _authoriser(token: str) -> Callable[[Request], Awaitable[None]]:
    """Make a dependency that refuses requests without the token."""

    async def authorise(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "a valid bearer token is needed", {"WWW-Authenticate": "Bearer"})

    return authorise


def _body_reader(limits: ServerConfig) -> Callable[[Request], Awaitable[bytes]]:
    """Make a dependency that reads a request's body and stops as soon as it breaks a limit."""

    async def read(request: Request) -> bytes:
        # A web page may send text to loopback without asking; it may not claim that it is JSON.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "the content type must be application/json")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "compressed requests are not read")
        body = bytearray()
        try:
            async with asyncio.timeout(limits.read_s):
                async for piece in request.stream():
                    body += piece
                    if len(body) > limits.body_bytes:
                        raise HTTPException(413, f"the request is larger than {limits.body_bytes} bytes")
        except TimeoutError:
            raise HTTPException(408, f"the request took longer than {limits.read_s:g} s to arrive") from None
        except ClientDisconnect:
            raise HTTPException(400, "the request ended early") from None
        return bytes(body)

    return read


async def _run(size: int, work: Callable[..., T], *arguments: object) -> T:
    """Do what takes long for a large request in a thread; for a small one, handing over costs more."""
    return work(*arguments) if size <= SMALL_BODY else await asyncio.to_thread(work, *arguments)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _json_of(value: object) -> Response:
    return _json(wire.dumps(value))


def _printable(error: Exception) -> str:
    return str(error).encode("utf-8", "backslashreplace").decode()[:500]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _end_with(parent: int) -> None:
    """Stop the server when its parent is no longer the given one, that is, has died.

    The kernel's own signal (`posttrain.sandbox.linux.die_with_parent`) will not do here: it comes already
    when the thread ends that started the server, and leaves no time for requests under way.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
