"""The reward server on a Ray cluster: several replicas behind one address, by Ray Serve."""

import logging
import signal
import threading
from pathlib import Path

import ray
from fastapi import FastAPI
from ray import serve

from rewards.serving.config import ServerConfig
from rewards.serving.server import announce, check_address, create_app, start_scorer


@serve.deployment
@serve.ingress()
class RewardReplica:
    """One reward server of several; it has scoring processes of its own."""

    def __init__(self, config: ServerConfig, token: str):
        self._config = config
        self._token = token
        self._scorer = start_scorer(config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._scorer, self._config, self._token)

    def __del__(self) -> None:
        self._scorer.close()


def serve_replicas(
    config: ServerConfig,
    replicas: int,
    host: str = "127.0.0.1",
    port: int = 8900,
    token: str = "",
    url_file: Path | None = None,
) -> None:
    """Serve rewards from several replicas until a signal says stop.

    They run on the cluster that `RAY_ADDRESS` names, else on one of this machine. Each keeps as many cores as
    it has workers. Ray Serve adds the routes `/-/healthz` and `/-/routes`, which ask for no token and say
    only that something is served.

    Args:
        config: What each replica serves; its limits hold for each.
        replicas: How many.
        host: Address to listen on.
        port: Port to listen on.
        token: Bearer token that clients must send; needed beyond loopback.
        url_file: Where to write the address once it can be reached.

    Raises:
        RewardError: If the address needs a token.
    """
    check_address(host, token)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        serve.start(http_options={"host": host, "port": port})
        deployment = RewardReplica.options(  # pyright: ignore[reportFunctionMemberAccess]  # as Ray declares it
            num_replicas=replicas, ray_actor_options={"num_cpus": config.workers or 1}
        )
        serve.run(deployment.bind(config, token), name="rewards", route_prefix="/")
        if url_file:
            announce(url_file, host, port)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
