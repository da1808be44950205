"""An engine at work in this process: what a worker of a pool does, without Ray."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from posttrain.concurrency import all_or_first_failure
from posttrain.inference.answers import AnswerQuestion, AnswerSampling, Question, SampledAnswer
from posttrain.inference.jobs import Job
from posttrain.inference.worker import InferenceWorker
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import EpisodeJob, EpisodePlayer, Limits, TaskEnvironments
from posttrain.types import Trajectory

#: No test's jobs take as long.
PATIENCE_S = 120.0


@contextmanager
def at_work(
    engine: Any, renderer: Renderer, lockstep: bool = True, image_bytes: int | None = None
) -> Iterator[InferenceWorker]:
    """A worker with this engine, which may be used again afterwards."""
    worker = InferenceWorker()
    worker.serve(renderer, lambda: engine, lockstep=lockstep, image_bytes=image_bytes)
    try:
        yield worker
    finally:
        worker.close()


def do(worker: InferenceWorker, jobs: Sequence[Job[Any, Any]]) -> list[Any]:
    """Have a worker do jobs; the first failure is raised, and the others are cancelled."""

    async def each(job: Job[Any, Any]) -> Any:
        return await job(worker)

    async def together() -> list[Any]:
        return await all_or_first_failure(map(each, jobs))

    [future] = worker.serving.begin([together()])
    return future.result(PATIENCE_S)


def answer_all(
    engine: Any,
    renderer: Renderer,
    questions: Sequence[Question],
    sampling: AnswerSampling,
    image_bytes: int | None = None,
) -> list[SampledAnswer]:
    """Answer questions, in their order."""
    with at_work(engine, renderer, image_bytes=image_bytes) as worker:
        return do(worker, [AnswerQuestion(question, sampling) for question in questions])


class PlayEpisodes:
    """A job: play episodes without having them scored."""

    def __init__(
        self, environments: Mapping[str, TaskEnvironments], episodes: Sequence[EpisodeJob], limits: Limits
    ) -> None:
        self.environments, self.episodes, self.limits = environments, episodes, limits
        self.size = len(episodes)

    async def __call__(self, worker: InferenceWorker) -> list[Trajectory]:
        slots = [worker.serving.slot() for _ in self.episodes]
        players = {
            episode.group: EpisodePlayer(worker, self.environments[episode.task], self.limits)
            for episode in self.episodes
        }
        for episode in self.episodes:
            players[episode.group].prepare(episode.sample)
        try:
            return await all_or_first_failure(
                players[episode.group].play(episode, slot)
                for episode, slot in zip(self.episodes, slots, strict=True)
            )
        finally:
            for player in players.values():
                player.close()
            for slot in slots:
                slot.close()


def play(
    engine: Any,
    renderer: Renderer,
    environments: Mapping[str, TaskEnvironments],
    episodes: Sequence[EpisodeJob],
    limits: Limits,
    lockstep: bool = True,
    image_bytes: int | None = None,
) -> list[Trajectory]:
    """Play episodes; return their trajectories in their order."""
    with at_work(engine, renderer, lockstep, image_bytes) as worker:
        return do(worker, [PlayEpisodes(environments, episodes, limits)])[0]
