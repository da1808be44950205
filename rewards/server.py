"""Rewards over HTTP.

    POST /v1/score    {"rewards": [{name, weight, params, only_if}], "inputs": […], "groups": […]?}
                      → {"results": […]}
    GET  /v1/rewards  what is served, with ranges
    GET  /health      whether it serves
    GET  /metrics     counts, in Prometheus' text format

The server runs the rewards that it was started with and no others: a client names rewards, it cannot bring
code. Scoring happens in the processes of `rewards.scorer`, so a reward that hangs or crashes leaves the
server unharmed.
"""

import asyncio
import hmac
import ipaddress
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

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

from rewards import wire
from rewards.admission import ImageAdmission
from rewards.client import PARENT_VARIABLE
from rewards.scorer import Scorer, Scoring
from rewards.sdk import RewardError

#: Beyond so many requests at once, even `/health` answers 503.
MAX_CONNECTIONS = 256
SHUTDOWN_S = 5


@dataclass(frozen=True)
class ServerLimits:
    """What one client may ask of the server.

    Attributes:
        body_bytes: Size of a request; images travel by reference, so this is text.
        queued: Samples that may wait for a process; beyond it, requests are answered 429.
        read_s: Seconds that a client may take to send its request.
    """

    body_bytes: int = 16 << 20
    queued: int = 4096
    read_s: float = 30.0


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


def create_app(
    scorer: Scorer,
    token: str = "",
    limits: ServerLimits | None = None,
    image_roots: Sequence[Path] = (),
) -> FastAPI:
    """The HTTP interface to a scorer.

    Args:
        scorer: Where rewards run; the caller closes it.
        token: Bearer token that every route asks for; "" for none.
        limits: Defaults fit one training run.
        image_roots: Folders below which images may be named by reference.
    """
    limits = limits or ServerLimits()
    metrics = ServerMetrics(scorer)

    async def authorise(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "a valid bearer token is needed", {"WWW-Authenticate": "Bearer"})

    # Generated pages would be routes without a token.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(authorise)])
    read_body = _body_reader(limits)

    def begin(body: bytes, directory: Path) -> Scoring:
        """Read a request and queue its episodes."""
        specs, inputs, groups = wire.read_score_request(body)
        if len(inputs) > limits.queued:
            raise HTTPException(413, f"more than {limits.queued} inputs; send them in several requests")
        if scorer.queued + len(inputs) > limits.queued:
            metrics.refused.inc()
            raise HTTPException(429, f"{scorer.queued} samples are waiting already", {"Retry-After": "1"})
        return scorer.submit(specs, ImageAdmission(image_roots, directory).admit(inputs), groups)

    def finish(scoring: Scoring) -> bytes:
        return wire.dumps({"results": [wire.result_to_json(result) for result in scoring.results()]})

    @app.post("/v1/score")
    async def score(body: Annotated[bytes, Depends(read_body)]) -> Response:
        with metrics.requests.time(), tempfile.TemporaryDirectory(prefix="posttrain-rewards-") as directory:
            try:
                scoring = await asyncio.to_thread(begin, body, Path(directory))
            except (wire.WireError, RewardError) as error:
                raise HTTPException(400, _printable(error)) from None
            await scoring.wait()
            return _json(await asyncio.to_thread(finish, scoring))

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
    references: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 8900,
    token: str = "",
    base_dir: Path | None = None,
    image_roots: Sequence[Path] = (),
    url_file: Path | None = None,
) -> None:
    """Serve rewards until a signal, or the end of the process that started this one, says stop.

    Args:
        references: The rewards to serve.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        token: Bearer token that clients must send; needed beyond loopback.
        base_dir: Folder against which file references are resolved.
        image_roots: Folders below which images may be named by reference.
        url_file: Where to write the server's address once it can be reached.

    Raises:
        RewardError: If the address cannot be used, or needs a token.
        PluginError: If a reference does not lead to a reward.
    """
    if not token and not _is_loopback(host):
        raise RewardError(
            f"rewards serve: {host} can be reached from other machines, so a token is needed: set"
            " POSTTRAIN_REWARD_TOKEN here and for the clients, or listen on 127.0.0.1"
        )
    if parent := os.environ.get(PARENT_VARIABLE):
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise RewardError(f"rewards serve: cannot listen on {host} port {port}: {error}") from None
    with listener, Scorer(references, base_dir=base_dir) as scorer:
        config = uvicorn.Config(
            create_app(scorer, token, image_roots=image_roots),
            log_level="warning",
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        if url_file:
            _announce(url_file, host, listener.getsockname()[1])
        uvicorn.Server(config).run(sockets=[listener])


def _body_reader(limits: ServerLimits) -> Any:
    """A dependency that reads a request's body and stops as soon as it breaks a limit."""

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


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _json_of(value: Any) -> Response:
    return _json(wire.dumps(value))


def _printable(error: Exception) -> str:
    return str(error).encode("utf-8", "backslashreplace").decode()[:500]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _announce(url_file: Path, host: str, port: int) -> None:
    """Write the address so that a reader sees all of it or nothing."""
    unfinished = url_file.with_name(f".{url_file.name}.tmp")
    unfinished.write_text(
        f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", encoding="utf-8"
    )
    unfinished.replace(url_file)


def _end_with(parent: int) -> None:
    """End this process when its parent is no longer the given one, that is, has died."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
