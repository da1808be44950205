"""A curation's checkpoints in engines of our own: a pool answers its questions and plays its episodes.

The pool is asked directly and not through Ray Data: it already shares work out and repeats that of lost
engines, renders as training does, and answers by seeds (on a CPU in float32 the same seed gives the same
answer); the rows themselves come from a curation that keeps and resumes them one by one.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import ray

from posttrain.chat_endpoint import BadReply, Completion
from posttrain.config import TaskConfig
from posttrain.config.curation import CurationConfig
from posttrain.config.endpoints import CheckpointConfig
from posttrain.config.sampling_steps import PlayingStep
from posttrain.curation.asking import Sampling, chat, checkpoint_version, file_digest, video_digest
from posttrain.curation.episodes import PooledEpisodes
from posttrain.curation.outcomes import CurationError, RowError
from posttrain.inference.answers import AnswerSampling, Question, SampledAnswer
from posttrain.inference.engine import stable_seed
from posttrain.joints import Plugins
from posttrain.rollout.play import RolloutPool
from posttrain.rollout.reward_server import start_reward_server
from posttrain.rollout.worker import RewardAccess, RolloutSetup
from posttrain.run.cluster import cluster
from posttrain.types import Message

#: For so long the first question of a batch waits for others.
GATHER_S = 0.05

T = TypeVar("T")
Answering = Callable[[Sequence[Question], AnswerSampling], Sequence[SampledAnswer]]


class EngineModels:
    """The engines of a curation's checkpoints; a context manager that ends them.

    They start when a step first asks, those of one checkpoint at a time: another's take their place. A
    running Ray cluster is used as it is.

    Args:
        recipe: The curation.
        plugins: Tools and rewards of the tasks that its steps play.
        engine: Reference of the engine's class.
        use_gpu: Whether engines take GPUs of a cluster that is running; one that is started says it itself.

    Example:
        with EngineModels(recipe, PLUGINS) as models:
            report = curate(recipe, PLUGINS, open_checkpoint=models.open, open_episodes=models.open_episodes)
    """

    def __init__(
        self,
        recipe: CurationConfig,
        plugins: Plugins,
        engine: str = "posttrain.inference.vllm_engine:VllmEngine",
        use_gpu: bool = False,
    ) -> None:
        self._recipe, self._plugins, self._engine, self._use_gpu = recipe, plugins, engine, use_gpu
        self._stack = ExitStack()
        self._rewards: RewardAccess | None = None
        self._pool: RolloutPool | None = None
        self._served: CheckpointConfig | None = None

    def __enter__(self) -> "EngineModels":
        return self

    def __exit__(self, *_: object) -> None:
        self.close_pool()
        self._stack.close()

    def open(self, name: str, entry: CheckpointConfig) -> "EngineModel":
        """Return a checkpoint as steps ask it; nothing is started yet.

        Raises:
            CurationError: If it is one of adapters alone.
        """
        _check_whole(name, entry)
        return EngineModel(
            name, entry, lambda questions, sampling: self._pool_of(entry).answer(questions, sampling)
        )

    def open_episodes(self, step: PlayingStep, entry: CheckpointConfig) -> PooledEpisodes:
        """Return what plays a step's task with a checkpoint; nothing is started yet.

        Raises:
            CurationError: If the checkpoint is one of adapters alone.
        """
        _check_whole(step.endpoint or "", entry)
        return PooledEpisodes(
            step, lambda: self._pool_of(entry), step.name, entry.max_length, self._recipe.seed
        )

    def close_pool(self) -> None:
        """End the engines; a step that asks starts them anew."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _pool_of(self, entry: CheckpointConfig) -> RolloutPool:
        """Return the pool once it serves a checkpoint."""
        if self._pool is None or entry != self._served:
            self.close_pool()
            if not ray.is_initialized():
                settings = self._recipe.cluster.model_dump(exclude={"placement"})
                self._use_gpu = self._stack.enter_context(cluster(**settings)) > 0
            tasks = self._tasks(entry)
            setup = RolloutSetup(
                model=entry.as_model,
                checkpoint=Path(entry.checkpoint),
                engine_config=entry.engine,
                max_length=entry.max_length,
                engine=self._engine,
                # Episodes come one by one; a lockstep would have engines wait for tools.
                lockstep=not (self._use_gpu or tasks),
                tasks=tasks,
                image_dir=self._images() if tasks else Path(self._recipe.output_dir),
                load_tools=self._plugins.load_tools,
                load_game=self._plugins.load_game,
                make_environment=self._plugins.make_environment,
                rewards=self._reward_access() if tasks else None,
                base_dir=Path(self._recipe.base_dir),
            )
            self._pool = RolloutPool(setup, actors=entry.actors, use_gpu=self._use_gpu)
            self._served = entry
        return self._pool

    def _tasks(self, entry: CheckpointConfig | None = None) -> list[TaskConfig]:
        """Return the tasks that steps have a checkpoint play, or all of them, named after their steps."""
        return [
            TaskConfig(name=step.name, data=self._recipe.data, **dict(step.task))
            for step in self._recipe.steps
            if isinstance(step, PlayingStep) and step.task is not None
            if entry is None or self._recipe.endpoints.get(step.endpoint or "") == entry
        ]

    def _images(self) -> Path:
        """Make a folder for the images of tools, which nobody needs after an episode is scored."""
        return Path(self._stack.enter_context(TemporaryDirectory(prefix="posttrain-images-")))

    def _reward_access(self) -> RewardAccess:
        """Return the reward server of all tasks, started when first needed."""
        if self._rewards is None:
            folder = Path(self._recipe.output_dir) / self._recipe.name
            server, self._rewards = start_reward_server(
                self._plugins, self._tasks(), Path(self._recipe.base_dir), folder / "reward-server.log"
            )
            self._stack.callback(server.close)
        return self._rewards


def _check_whole(name: str, entry: CheckpointConfig) -> None:
    """Refuse a checkpoint of adapters alone.

    Raises:
        CurationError: If it is one.
    """
    if (Path(entry.checkpoint) / "adapter_config.json").is_file():
        raise CurationError(
            f"endpoints.{name}.checkpoint: {entry.checkpoint} holds adapters alone; merge them by"
            " `posttrain export` and name its output"
        )


class EngineModel:
    """One checkpoint (see `Model`); an async context manager within one event loop.

    Questions that come at the same time are answered together; those that come meanwhile wait for the next
    batch.

    Args:
        name: What the recipe calls it.
        entry: The checkpoint.
        answer: Answers a batch; runs in a thread.
    """

    def __init__(self, name: str, entry: CheckpointConfig, answer: Answering) -> None:
        self._name, self._concurrency, self._max_length = name, entry.concurrency, entry.max_length
        self._answer = answer
        how = entry.model_dump(mode="json", exclude={"actors", "engine"})
        self._identity = how | {"checkpoint": checkpoint_version(entry.checkpoint)}
        self._waiting: list[tuple[tuple[Message, ...], Sampling, asyncio.Future[SampledAnswer]]] = []
        self._asked = asyncio.Event()

    async def __aenter__(self) -> "EngineModel":
        self._batches = asyncio.create_task(self._answer_batches())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._batches.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._batches

    def identity(self, messages: Sequence[Message], sampling: Sampling) -> Any:
        """Return what an answer depends on: checkpoint, how it sees what is shown, dialogue, sampling."""
        return [self._identity, chat(messages, file_digest, video_digest), asdict(sampling)]

    async def answer(
        self, messages: Sequence[Message], sampling: Sampling, read: Callable[[Completion], T]
    ) -> tuple[Completion, T]:
        """Ask for a new answer; the same seed gives the same one, so one that `read` refuses is final.

        Raises:
            RowError: If the dialogue cannot be shown to the model, or `read` cannot use the answer.
            CurationError: If the engines cannot be started, or keep failing.
        """
        future: asyncio.Future[SampledAnswer] = asyncio.get_running_loop().create_future()
        self._waiting.append((tuple(messages), sampling, future))
        self._asked.set()
        found = await future
        if found.error:
            raise RowError(f"endpoint {self._name!r}: {found.error}")
        completion = Completion(found.text, found.truncated)
        try:
            return completion, read(completion)
        except BadReply as error:
            raise RowError(f"endpoint {self._name!r}: {error}") from None

    async def _answer_batches(self) -> None:
        while True:
            await self._asked.wait()
            await asyncio.sleep(GATHER_S)
            batch = self._next_batch()
            _, first, _ = batch[0]
            questions = [
                Question(index, messages, (), _seed(messages, sampling))
                for index, (messages, sampling, _) in enumerate(batch)
            ]
            how = AnswerSampling(
                max_new_tokens=first.max_tokens, max_length=self._max_length, temperature=first.temperature
            )
            try:
                answers = await asyncio.to_thread(self._answer, questions, how)
            except Exception as error:  # of Ray, vLLM or the checkpoint: no row will fare better
                reason = CurationError(f"endpoint {self._name!r}: {type(error).__name__}: {error}")
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(reason)
                continue
            for (_, _, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # its row was given up meanwhile
                    future.set_result(answer)

    def _next_batch(self) -> list[tuple[tuple[Message, ...], Sampling, asyncio.Future[SampledAnswer]]]:
        """Take the longest waiting question, and as many sampled in the same way as are answered at once."""
        _, first, _ = self._waiting[0]
        alike = [
            asked
            for asked in self._waiting
            if (asked[1].temperature, asked[1].max_tokens) == (first.temperature, first.max_tokens)
        ]
        batch = alike[: self._concurrency]
        taken = {id(asked) for asked in batch}
        self._waiting = [asked for asked in self._waiting if id(asked) not in taken]
        if not self._waiting:
            self._asked.clear()
        return batch


def _seed(messages: Sequence[Message], sampling: Sampling) -> int:
    """Return a seed of the dialogue's own, so that the same luck does not decide on all rows."""
    return stable_seed(sampling.seed, *(message.text for message in messages))
