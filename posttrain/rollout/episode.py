"""Run many episodes at once on one engine; each continues as soon as its own turn is finished.

Nothing here depends on time: tools run between two steps of the engine, in the order in which their turns
finished. So the weights and the seeds alone decide what a rollout samples, as far as the engine's arithmetic
repeats.
"""

import collections
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from posttrain.inference.engine import Completion, Engine, Request, stable_seed
from posttrain.inference.images import PROMPTS_AHEAD, engine_images
from posttrain.joints import Environment
from posttrain.media.images import ImageError
from posttrain.rendering.collation import prepare
from posttrain.rendering.pixels import ImageChangedError
from posttrain.rendering.rendered import Rendered, RenderError
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.ledger import append_observation, append_prompt, append_turn, check_ledger
from posttrain.types import Message, Sample, ToolSpec, Trajectory, text_message

logger = logging.getLogger(__name__)

#: Number of threads that run the tools between two engine steps.
TOOL_THREADS = 4
_UNREADABLE = text_message("tool", "Error: the result cannot be shown.")


class EpisodeError(RuntimeError):
    """An episode cannot be run; the message names its sample."""


@dataclass(frozen=True)
class TaskEnvironments:
    """How to make the environments of one task.

    Attributes:
        tools: The tools that the prompt announces.
        create: Makes the environment of one episode.
    """

    tools: Sequence[ToolSpec]
    create: Callable[[], Environment]


@dataclass(frozen=True)
class EpisodeJob:
    """One episode to run.

    Attributes:
        sample: The prompt.
        task: Name of its task.
        group: Index of the prompt in its batch.
        episode: Index within the group.
        seed: The episode's seed, from which each turn derives its own.
    """

    sample: Sample
    task: str
    group: int
    episode: int
    seed: int


@dataclass(frozen=True)
class Limits:
    """How long episodes may get, and how they are sampled.

    Attributes:
        max_new_tokens: Most tokens of one turn.
        max_length: Most tokens of an episode: prompt, turns and observations together.
        temperature: Sampling temperature: 1.0 in training, 0.0 for greedy decoding.
    """

    max_new_tokens: int
    max_length: int
    temperature: float = 1.0

    def leave_room(self, prompt_tokens: int) -> bool:
        """Tell whether an answer to a prompt of so many tokens can be sampled."""
        return prompt_tokens < self.max_length


@dataclass
class _Running:
    """An episode that is not over yet."""

    job: EpisodeJob
    environment: Environment
    ledger: Trajectory
    turn: int = 0

    @property
    def id(self) -> str:
        """Id of the request for the present turn."""
        return f"{self.job.group}-{self.job.episode}-{self.turn}"


def run_episodes(
    engine: Engine,
    renderer: Renderer,
    environments: Mapping[str, TaskEnvironments],
    jobs: Sequence[EpisodeJob],
    limits: Limits,
    on_finished: Callable[[Trajectory], None] = lambda trajectory: None,
) -> list[Trajectory]:
    """Run episodes to their ends.

    Args:
        engine: An engine without requests in flight.
        renderer: The renderer of the checkpoint that the engine serves.
        environments: The environments of each task, by its name.
        jobs: The episodes; no two may have the same (group, episode).
        limits: Lengths and temperature.
        on_finished: Called with each checked trajectory as soon as it is complete.

    Returns:
        One trajectory per job, in the jobs' order.

    Raises:
        EpisodeError: If a prompt cannot be rendered or leaves no room for an answer.
        LedgerError: If a trajectory breaks an invariant.
    """
    driver = _Driver(engine, renderer, environments, limits)
    finished: dict[tuple[int, int], Trajectory] = {}
    try:
        for trajectory in driver.run(jobs):
            check_ledger(trajectory, renderer.image_token_id, limits.max_length)
            finished[trajectory.group, trajectory.episode] = trajectory
            on_finished(trajectory)
    finally:
        driver.close()
    return [finished[job.group, job.episode] for job in jobs]


def prompt_tokens(
    renderer: Renderer, environments: Mapping[str, TaskEnvironments], sample: Sample, task: str
) -> int:
    """Count the tokens of the prompt with which an episode begins.

    Args:
        renderer: The renderer of the checkpoint; a counting one (`Renderer.counting`) decodes no image.
        environments: The environments of each task, by its name.
        sample: The prompt.
        task: Name of its task.

    Raises:
        EpisodeError: If the prompt cannot be rendered.
    """
    environment = environments[task].create()
    try:
        messages = environment.start(sample)
        return len(_render_prompt(renderer, sample, task, messages, environments[task].tools).token_ids)
    finally:
        environment.close()


class _Driver:
    """The loop of `run_episodes`: submits turns to the engine and carries finished ones on."""

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        environments: Mapping[str, TaskEnvironments],
        limits: Limits,
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._environments = environments
        self._limits = limits
        self._running: dict[str, _Running] = {}
        self._threads = ThreadPoolExecutor(TOOL_THREADS, thread_name_prefix="tools")
        self._counting = renderer.counting()
        self._prepared: set[tuple[str, int]] = set()

    def run(self, jobs: Sequence[EpisodeJob]) -> Iterator[Trajectory]:
        """Yield trajectories as they finish; at most `engine.capacity` episodes are open at a time."""
        waiting = collections.deque(jobs)
        while waiting or self._running:
            while waiting and len(self._running) < self._engine.capacity:
                self._start(waiting.popleft())
            self._prepare(itertools.islice(waiting, PROMPTS_AHEAD))
            yield from self._advance(self._engine.step())

    def _prepare(self, jobs: Iterable[EpisodeJob]) -> None:
        """Have the images of prompts loaded in threads, once for the episodes of a group."""
        for job in jobs:
            if (job.task, job.group) not in self._prepared:
                self._prepared.add((job.task, job.group))
                with contextlib.suppress(ValueError):  # `_start` says what is wrong with a prompt
                    prepare([self._counting.render(job.sample.messages)], self._renderer)

    def close(self) -> None:
        """Close every environment and drop every request, also after a failure."""
        self._engine.abort()
        for episode in self._running.values():
            episode.environment.close()
        self._threads.shutdown()

    def _start(self, job: EpisodeJob) -> None:
        """Open an environment and ask for the first turn."""
        task = self._environments[job.task]
        environment = task.create()
        try:
            messages = environment.start(job.sample)
            rendered = self._render_prompt(job, messages, task.tools)
        except BaseException:
            environment.close()
            raise
        ledger = Trajectory(job.sample.id, job.task, job.group, job.episode)
        append_prompt(ledger, rendered, messages)
        self._submit(_Running(job, environment, ledger))

    def _render_prompt(
        self, job: EpisodeJob, messages: tuple[Message, ...], tools: Sequence[ToolSpec]
    ) -> Rendered:
        """Tokenise a prompt; raises EpisodeError if it cannot be shown or is too long."""
        rendered = _render_prompt(self._renderer, job.sample, job.task, messages, tools)
        if not self._limits.leave_room(len(rendered.token_ids)):
            raise EpisodeError(
                f"{_named(job.sample, job.task)} has {len(rendered.token_ids)} prompt tokens, which leaves no"
                f" room in max_length = {self._limits.max_length}; raise rollout.max_length or lower"
                " model.max_pixels"
            )
        return rendered

    def _submit(self, episode: _Running) -> None:
        """Ask for the episode's next turn."""
        ledger, limits = episode.ledger, self._limits
        room = limits.max_length - len(ledger.token_ids)
        request = Request(
            id=episode.id,
            token_ids=tuple(ledger.token_ids),
            images=engine_images(ledger.images, self._renderer),
            max_tokens=min(limits.max_new_tokens, room),
            temperature=limits.temperature,
            seed=stable_seed(episode.job.seed, episode.turn),
        )
        self._running[episode.id] = episode
        self._engine.submit(request)

    def _advance(self, completions: list[Completion]) -> Iterator[Trajectory]:
        """Take sampled turns, let the environments answer, and ask for the next turns."""
        turns: list[tuple[_Running, str]] = []
        for completion in completions:
            episode = self._running[completion.id]
            text = self._renderer.decode(completion.token_ids)
            append_turn(episode.ledger, completion, text_message("assistant", text))
            if completion.finish_reason == "stop":
                turns.append((episode, text))
            else:
                yield self._finish(episode, "max_tokens")
        replies = self._threads.map(lambda turn: turn[0].environment.step(turn[1]), turns)
        for (episode, _), reply in zip(turns, replies, strict=True):
            episode.ledger.tool_calls += reply.calls
            if reply.done or reply.message is None:
                yield self._finish(episode, "max_turns" if reply.calls else "answer")
            elif self._observe(episode, reply.message):
                self._running.pop(episode.id)
                episode.turn += 1
                self._submit(episode)
            else:
                yield self._finish(episode, "max_tokens")

    def _observe(self, episode: _Running, message: Message) -> bool:
        """Append a reply, text and images together, unless no token could be sampled after it.

        Returns:
            Whether it was appended.
        """
        message, rendered = self._render_reply(episode, message)
        if len(episode.ledger.token_ids) + len(rendered.token_ids) >= self._limits.max_length:
            return False
        append_observation(episode.ledger, rendered, message)
        return True

    def _render_reply(self, episode: _Running, message: Message) -> tuple[Message, Rendered]:
        """Tokenise a reply; one that cannot be shown is replaced, because a tool must not end the rollout."""
        try:
            _refuse_videos([message])
            return message, self._renderer.observation(message)
        except (ImageError, RenderError) as error:
            logger.warning("sample %s: a tool's reply cannot be shown: %s", episode.job.sample.id, error)
            return _UNREADABLE, self._renderer.observation(_UNREADABLE)

    def _finish(self, episode: _Running, stop_reason: str) -> Trajectory:
        """Close an episode, and return its ledger."""
        self._running.pop(episode.id)
        episode.environment.close()
        episode.ledger.stop_reason = stop_reason
        return episode.ledger


def _render_prompt(
    renderer: Renderer, sample: Sample, task: str, messages: tuple[Message, ...], tools: Sequence[ToolSpec]
) -> Rendered:
    """Tokenise a prompt; raises EpisodeError if it cannot be shown."""
    try:
        _refuse_videos(messages)
        return renderer.render(messages, tools, add_generation_prompt=True)
    except (ImageError, RenderError, ImageChangedError) as error:
        raise EpisodeError(f"{_named(sample, task)} cannot be shown: {error}") from error


def _named(sample: Sample, task: str) -> str:
    return f"sample {sample.id!r} of task {task!r}"


def _refuse_videos(messages: Sequence[Message]) -> None:
    """Raise RenderError if a message shows a video."""
    if any(message.videos for message in messages):
        raise RenderError("it has a video, and rollouts show texts and images only")
