"""Score episodes on a reward server."""

import asyncio
import itertools
import logging
import random
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import httpx

from posttrain.reward_spec import RewardSpec
from posttrain.types import RewardInput, RewardResult
from rewards import wire

#: Samples in one request: few enough to answer within the time limit, enough to fill the workers.
BATCH_SIZE = 64
LONGEST_PAUSE_S = 5.0

log = logging.getLogger(__name__)
Result = TypeVar("Result")
#: A reward to ask for, as an object or as its fields.
RewardLike: TypeAlias = RewardSpec | Mapping[str, Any]


class RewardServerUnavailable(RuntimeError):
    """The server does not answer; the message says where, since when and what to do."""


class RewardRequestRefused(RuntimeError):
    """The server answered that the request is wrong or a budget spent; asking again would not help."""


class AsyncRewardClient:
    """Scores episodes on a server; waits for one that is away or busy, up to a limit.

    Args:
        url: The server's address.
        token: Its bearer token, "" where it has none.
        timeout: Seconds that one request of up to 64 episodes may take.
        wait: Seconds to keep trying while the server is away or busy.
        requests: How many requests may be under way at once.

    Example:
        async with AsyncRewardClient("http://127.0.0.1:8900") as client:
            results = await client.score([{"name": "math"}], episodes)
    """

    def __init__(
        self, url: str, token: str = "", timeout: float = 120.0, wait: float = 60.0, requests: int = 16
    ):
        self.url = url.rstrip("/")
        self.wait = wait
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )
        # Proxies of the environment are for the outside world.
        self._http = httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=timeout, trust_env=False, limits=httpx.Limits()
        )
        self._slots = asyncio.Semaphore(requests)

    async def score(
        self,
        specs: Sequence[RewardLike],
        inputs: Sequence[RewardInput],
        groups: Sequence[int] | None = None,
    ) -> list[RewardResult]:
        """Score episodes: one verdict each, in order; many travel in several requests at once.

        Args:
            specs: The rewards, as `RewardSpec` or `{"name", "weight", "params", "only_if"}`.
            inputs: The episodes.
            groups: The number of each one's group; a group stands together and is never divided.

        Raises:
            RewardServerUnavailable: If the server stayed away or busy for `wait` seconds.
            RewardRequestRefused: If it serves no such reward, or knows the token or the request as wrong.
            WireError: If an episode cannot be written as JSON.
        """
        rewards = [spec if isinstance(spec, RewardSpec) else RewardSpec(**spec) for spec in specs]
        batches = [
            self._score_batch(rewards, inputs[part], groups and groups[part])
            for part in _batches(len(inputs), groups)
        ]
        return [result for results in await asyncio.gather(*batches) for result in results]

    async def health(self) -> bool:
        """Ask whether the server answers now and accepts the token."""
        try:
            return (await self._http.get("/health", timeout=5)).is_success
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncRewardClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _score_batch(
        self, specs: Sequence[RewardSpec], inputs: Sequence[RewardInput], groups: Sequence[int] | None
    ) -> list[RewardResult]:
        async with self._slots:
            reply = wire.loads(await self._post(wire.score_request(specs, inputs, groups)))
        rows = reply.get("results") if isinstance(reply, dict) else None
        if not isinstance(rows, list) or len(rows) != len(inputs):
            raise RewardRequestRefused(f"{self.url} did not answer as a reward server of this version does")
        return [wire.result_from_json(row, f"results[{i}]") for i, row in enumerate(rows)]

    async def _post(self, body: bytes) -> bytes:
        give_up, pause = None, 0.1
        while True:
            try:
                response = await self._http.post("/v1/score", content=body)
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            else:
                if response.is_success:
                    return response.content
                if response.status_code == httpx.codes.PAYMENT_REQUIRED:
                    raise RewardRequestRefused(_detail(response))
                reason = f"{response.status_code}: {_detail(response)}"
                if response.status_code != httpx.codes.TOO_MANY_REQUESTS and not response.is_server_error:
                    raise RewardRequestRefused(f"reward server {self.url} refused the request: {reason}")
            now = time.monotonic()
            if give_up is None:
                give_up = now + self.wait
                log.warning("reward server %s: %s; trying for %g s more", self.url, reason, self.wait)
            if now >= give_up:
                raise RewardServerUnavailable(
                    f"the reward server {self.url} has not scored anything for {self.wait:g} s ({reason})."
                    " See its log; once it runs again (posttrain rewards serve …), go on with --resume"
                )
            await asyncio.sleep(min(pause * random.uniform(0.5, 1.5), max(0.0, give_up - now)))
            pause = min(2 * pause, LONGEST_PAUSE_S)


class RewardClient:
    """`AsyncRewardClient` for threads: its requests run in an event loop of a thread of its own.

    It may be used by several threads at once.

    Args:
        url: The server's address.
        token: Its bearer token, "" where it has none.
        timeout: Seconds that one request of up to 64 episodes may take.
        wait: Seconds to keep trying while the server is away or busy.
        requests: How many requests may be under way at once.

    Example:
        RewardClient("http://127.0.0.1:8900").score([{"name": "math"}], episodes)
    """

    def __init__(
        self, url: str, token: str = "", timeout: float = 120.0, wait: float = 60.0, requests: int = 16
    ):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reward-client", daemon=True)
        self._thread.start()
        self._client = AsyncRewardClient(url, token, timeout, wait, requests)

    def score(
        self,
        specs: Sequence[RewardLike],
        inputs: Sequence[RewardInput],
        groups: Sequence[int] | None = None,
    ) -> list[RewardResult]:
        """Score episodes: one verdict each, in order; see `AsyncRewardClient.score`."""
        return self._wait_for(self._client.score(specs, inputs, groups))

    def health(self) -> bool:
        """Ask whether the server answers now and accepts the token."""
        return self._wait_for(self._client.health())

    def close(self) -> None:
        """Close the connections and end the thread."""
        self._wait_for(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait_for(self, coroutine: Coroutine[object, object, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _batches(count: int, groups: Sequence[int] | None) -> list[slice]:
    """Cut into runs of at most `BATCH_SIZE` episodes, or one larger group, that end where a group ends."""
    ends = list(range(1, count + 1))
    if groups is not None:
        ends = [end for end in ends if end == count or groups[end] != groups[end - 1]]
        if len(ends) != len(set(groups)):
            raise ValueError("the episodes of a group must stand together")
    starts = [0]
    for end, following in itertools.pairwise(ends):
        if following - starts[-1] > BATCH_SIZE:
            starts.append(end)
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True) if end > start]


def _detail(response: httpx.Response) -> str:
    """Return the server's reason, or the beginning of what it sent instead."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
