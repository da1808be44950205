"""Jobs between the steps of an engine: nothing waits for a tool, but in lockstep, where all bits repeat."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from posttrain.inference.engine import EngineError, Request, stable_seed
from posttrain.inference.jobs import Report
from posttrain.inference.serving import ServingError
from posttrain.inference.worker import InferenceWorker, JobError
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import EpisodeJob, Limits, TaskEnvironments
from posttrain.types import EnvironmentReply, Message, Sample, Trajectory, text_message
from tests.at_work import PATIENCE_S, PlayEpisodes, at_work, do, play
from tests.unit.rollout.scripted_engine import ScriptedEngine

LIMITS = Limits(max_new_tokens=20, max_length=400)
SAMPLE = Sample("s", (text_message("user", "Guess."),))
TURNS = 3


@pytest.fixture(scope="session")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")


class Engine(ScriptedEngine):
    """Its log-probs depend on the whole batch and its order, as the last bits of a real engine's sums may."""

    def __init__(self, checkpoint: Path, renderer: Renderer) -> None:
        super().__init__(checkpoint, renderer.end_token_id, renderer.banned_token_ids)
        self.say = lambda request: f"guess {request.seed % 10}"
        self.batches: list[tuple[str, ...]] = []
        self.before_step: Callable[[], object] = lambda: None

    def step(self) -> Any:
        self.before_step()
        self.batches.append(tuple(self._left))
        return super().step()

    def _complete(self, request: Request) -> Any:
        done = super()._complete(request)
        done.logprobs[:] = [-(stable_seed(*self.batches[-1]) % 997) / 1000] * len(done.logprobs)
        return done


@pytest.fixture
def engine(tiny_checkpoint: Path, renderer: Renderer) -> Engine:
    return Engine(tiny_checkpoint, renderer)


class Guessing:
    """Says something after every turn, up to the last; each reply takes as long as it is told to.

    Attributes:
        log: What happened, shared by all episodes.
    """

    def __init__(self, delay: Callable[[], float], log: list[str]) -> None:
        self.delay, self.log = delay, log
        self.turns = 0

    def start(self, sample: Sample) -> tuple[Message, ...]:
        time.sleep(self.delay())
        self.log.append("open")
        return sample.messages

    def step(self, assistant_text: str) -> EnvironmentReply:
        assert self.log, "a step after its episode was closed"
        time.sleep(self.delay())
        self.turns += 1
        if self.turns == TURNS:
            return EnvironmentReply(None, (), done=True)
        return EnvironmentReply(text_message("tool", f"no, {self.turns}"), (), done=False)

    def close(self) -> None:
        self.log.append("close")


def task_of(delay: Callable[[], float], log: list[str]) -> dict[str, TaskEnvironments]:
    return {"guess": TaskEnvironments([], lambda: Guessing(delay, log))}


def episodes(groups: int, size: int = 4) -> list[EpisodeJob]:
    return [
        EpisodeJob(SAMPLE, "guess", group, index, stable_seed(group, index))
        for group in range(groups)
        for index in range(size)
    ]


def jitter(seed: int) -> Callable[[], float]:
    random = Random(seed)
    return lambda: random.choice((0.0, 0.0, 0.001, 0.004, 0.015))


@pytest.mark.parametrize("lockstep", [True, False])
def test_whatever_tools_take_every_episode_is_played_once(
    engine: Engine, renderer: Renderer, lockstep: bool
) -> None:
    said: list[list[str]] = []
    for seed in range(4):
        log: list[str] = []
        asked = episodes(5)
        found = play(engine, renderer, task_of(jitter(seed), log), asked, LIMITS, lockstep)
        assert [(each.group, each.episode) for each in found] == [(job.group, job.episode) for job in asked]
        assert sorted(log) == ["close"] * 20 + ["open"] * 20
        assert not engine.busy
        said.append([renderer.decode(each.token_ids) for each in found])
    assert all(each == said[0] for each in said)
    assert said[0][0].count("assistant") == TURNS


def test_in_lockstep_a_repetition_is_equal_bit_for_bit(tiny_checkpoint: Path, renderer: Renderer) -> None:
    def played(seed: int, lockstep: bool) -> tuple[list[Trajectory], list[tuple[str, ...]]]:
        engine = Engine(tiny_checkpoint, renderer)
        found = play(engine, renderer, task_of(jitter(seed), []), episodes(5), LIMITS, lockstep)
        return found, engine.batches

    first, batches = played(0, lockstep=True)
    for seed in range(1, 5):
        assert played(seed, lockstep=True) == (first, batches)
    # The tools' jitter would show: without lockstep the same test fails.
    assert any(played(seed, lockstep=False)[1] != batches for seed in range(1, 5))


def test_a_slow_tool_holds_its_own_episode_alone(engine: Engine, renderer: Renderer) -> None:
    slow, done = threading.Event(), []

    class Slow(Guessing):
        def step(self, assistant_text: str) -> EnvironmentReply:
            slow.wait(PATIENCE_S)
            return super().step(assistant_text)

    asked = episodes(6)
    made = iter(range(len(asked)))

    def create() -> Guessing:
        kind = Slow if next(made) == 0 else Guessing
        return kind(lambda: 0.0, ["open"])

    class Watched(PlayEpisodes):
        async def __call__(self, worker: InferenceWorker) -> list[Trajectory]:
            found = await super().__call__(worker)
            done.extend(found)
            if len(done) == len(asked) - 1:
                slow.set()  # every other episode is over, and so the slow one may go on
            return found

    tasks = {"guess": TaskEnvironments([], create)}
    with at_work(engine, renderer, lockstep=False) as worker:
        do(worker, [Watched(tasks, [episode], LIMITS) for episode in asked])
    assert len(done) == len(asked)


def test_weights_are_loaded_between_two_steps_with_requests_in_flight(
    engine: Engine, renderer: Renderer
) -> None:
    seen: list[tuple[bool, str]] = []
    load = engine.load_weights

    def watched(path: Path, version: int) -> None:
        seen.append((engine.busy, threading.current_thread().name))
        load(path, version)

    engine.load_weights = watched
    started = threading.Event()
    engine.before_step = lambda: (started.set(), time.sleep(0.002))
    with at_work(engine, renderer, lockstep=False) as worker:
        job = PlayEpisodes(task_of(jitter(0), []), episodes(5), LIMITS)
        worker.take([(7, job)])
        assert started.wait(PATIENCE_S)
        for version in range(1, 6):
            assert worker.load_weights(Path(), version) == version
        trajectories = wait_for(worker, 1)[7].result
    versions = {version for each in trajectories for version in each.versions if version >= 0}
    assert len(versions) > 1
    assert {name for _, name in seen} == {"engine"}
    assert any(busy for busy, _ in seen)


def wait_for(worker: InferenceWorker, count: int) -> dict[int, Any]:
    """The ends of so many jobs, by ticket, from as many reports as it takes."""
    found: dict[int, Any] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count and time.monotonic() < deadline:
        found |= {outcome.ticket: outcome for outcome in worker.report(1.0).outcomes}
    return found


class Unpicklable(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


class Failing(Guessing):
    def step(self, assistant_text: str) -> EnvironmentReply:
        raise Unpicklable("no", "way")

    def close(self) -> None:
        time.sleep(0.05)  # in which the end of the first one to fail cancels the others, which wait to close
        super().close()


def test_what_a_job_raises_is_its_own_end_and_no_other_jobs(engine: Engine, renderer: Renderer) -> None:
    log: list[str] = ["open"]
    broken = {"guess": TaskEnvironments([], lambda: Failing(lambda: 0.0, log))}
    with at_work(engine, renderer, lockstep=False) as worker:
        worker.tools = ThreadPoolExecutor(2)  # so that some wait to be closed
        good = PlayEpisodes(task_of(jitter(1), []), episodes(3), LIMITS)
        worker.take([(0, good), (1, PlayEpisodes(broken, episodes(6), LIMITS)), (2, good)])
        found = wait_for(worker, 3)
        assert [len(found[ticket].result) for ticket in (0, 2)] == [12, 12]
        assert isinstance(found[1].error, JobError)
        assert str(found[1].error) == "Unpicklable: no"
        assert worker.serving.unfinished == 0
    assert log.count("open") == 1 + log.count("close")  # whoever was opened is closed


def test_a_cancelled_job_leaves_nothing_behind(engine: Engine, renderer: Renderer) -> None:
    log: list[str] = []
    stepped = threading.Event()
    engine.before_step = lambda: (stepped.set(), time.sleep(0.001))
    with at_work(engine, renderer, lockstep=True) as worker:
        other = PlayEpisodes(task_of(jitter(2), []), episodes(2), LIMITS)
        for seed in range(10):
            stepped.clear()
            job = PlayEpisodes(task_of(jitter(seed), log), episodes(5), LIMITS)
            worker.take([(3, job), (4, other)])
            assert stepped.wait(PATIENCE_S)
            time.sleep(0.003 * seed)
            worker.cancel(3)
            found = wait_for(worker, 1)
            assert len(found[4].result) == 8
            worker.report(0.0)
        assert worker.serving.unfinished == 0
        assert worker.serving.wanting == 0
    assert not engine.busy
    assert log.count("open") == log.count("close")


@pytest.mark.parametrize(
    ("error", "name"), [(RuntimeError("CUDA error"), "RuntimeError"), (SystemExit(3), "JobError")]
)
def test_an_engine_that_fails_says_so_at_once(
    engine: Engine, renderer: Renderer, error: BaseException, name: str
) -> None:
    def fail() -> None:
        if len(engine.batches) == 5:
            raise error

    engine.before_step = fail
    with at_work(engine, renderer, lockstep=False) as worker:
        job = PlayEpisodes(task_of(jitter(3), []), episodes(5), LIMITS)
        [future] = worker.serving.begin([job(worker)])
        with pytest.raises(ServingError, match=str(error)):
            future.result(PATIENCE_S)
        with pytest.raises(Exception, match=str(error)) as caught:
            worker.report(PATIENCE_S)
        assert type(caught.value).__name__ == name
        with pytest.raises(ServingError):
            worker.load_weights(Path(), 1)
        with pytest.raises(ServingError):
            worker.serving.begin([job(worker)])


def test_a_request_that_is_refused_fails_its_own_job(engine: Engine, renderer: Renderer) -> None:
    submit = engine.submit

    def refuse(request: Request) -> None:
        if request.seed == stable_seed(stable_seed(1, 2), 0):
            raise EngineError("too long")
        submit(request)

    engine.submit = refuse
    with at_work(engine, renderer) as worker:
        task = task_of(jitter(4), [])
        worker.take(
            [
                (group, PlayEpisodes(task, episodes(3)[4 * group : 4 * group + 4], LIMITS))
                for group in range(3)
            ]
        )
        found = wait_for(worker, 3)
    assert [found[group].error is None for group in range(3)] == [True, False, True]
    assert "too long" in str(found[1].error)


class Waiting:
    """A job that waits for an order."""

    size = 0

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, worker: InferenceWorker) -> str:
        await self.go.wait()
        return "done"


def test_a_report_comes_as_soon_as_there_is_something_to_say(engine: Engine, renderer: Renderer) -> None:
    engine.before_step = lambda: time.sleep(0.001)
    with at_work(engine, renderer, lockstep=False) as worker:
        begun = time.monotonic()
        assert worker.report(0.05) == Report([], 0, 0, 0.0)
        assert 0.05 <= time.monotonic() - begun < 5
        job = Waiting()
        threading.Timer(0.05, worker.serving.call, [lambda _: job.go.set()]).start()
        worker.take([(1, job)])
        begun = time.monotonic()
        [outcome] = worker.report(30.0).outcomes
        assert (outcome.ticket, outcome.result) == (1, "done")
        # Room is worth a report too, long before the group with the last sequence is done.
        worker.take([(2, PlayEpisodes(task_of(jitter(5), []), episodes(6), LIMITS))])
        wanted = [worker.report(30.0) for _ in range(3)]
        assert any(0 < report.wanting < engine.capacity for report in wanted)
        assert time.monotonic() - begun < 25


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    left = {each.name for each in set(threading.enumerate()) - before}
    assert not {name for name in left if not name.startswith("pixels")}
