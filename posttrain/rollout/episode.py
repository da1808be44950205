"""Play an episode: a policy and an environment take turns, in one ledger of tokens.

Nothing in an episode depends on time or on the episodes beside it, as far as the engine's arithmetic repeats:
the seed of each turn is its own.
"""

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from posttrain.inference.engine import Completion, EngineImage, Request, stable_seed
from posttrain.inference.images import engine_images
from posttrain.inference.serving import aside
from posttrain.inference.slots import Slot
from posttrain.inference.worker import InferenceWorker
from posttrain.joints import Environment
from posttrain.media.images import ImageError
from posttrain.rendering.collation import prepare
from posttrain.rendering.pixels import ImageChangedError
from posttrain.rendering.rendered import Rendered, RenderError
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.ledger import append_observation, append_prompt, append_turn, check_ledger
from posttrain.types import (
    EnvironmentReply,
    Message,
    Sample,
    ToolSpec,
    Trajectory,
    TrajectoryImage,
    text_message,
)

logger = logging.getLogger(__name__)

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


class _Partner:
    """An episode's environment, used by one thread at a time, and closed once whatever happens."""

    def __init__(self, create: Callable[[], Environment]) -> None:
        self._create = create
        self._environment: Environment | None = None
        self._closed = False
        self._lock = threading.Lock()

    def start(self, sample: Sample) -> tuple[Message, ...]:
        """Open the environment; return the messages before the model's first turn."""
        with self._lock:
            if self._closed:  # by an episode that was cancelled before this began
                return ()
            self._environment = self._create()
            return self._environment.start(sample)

    def step(self, text: str) -> EnvironmentReply:
        """Let the environment answer a turn."""
        with self._lock:
            if self._environment is None or self._closed:
                return EnvironmentReply(None, (), done=True)
            return self._environment.step(text)

    def close(self) -> None:
        """Close the environment, if it was opened."""
        with self._lock:
            if self._environment is not None and not self._closed:
                self._environment.close()
            self._closed = True


@dataclass(frozen=True)
class _Prompt:
    """A group's rendered prompt, which its episodes share.

    Attributes:
        messages: What it shows.
        rendered: Its tokens.
        images: Its images as the engine takes them.
    """

    messages: tuple[Message, ...]
    rendered: Rendered
    images: list[EngineImage]


@dataclass(frozen=True)
class _Observation:
    """A reply of the environment, to be appended to a ledger.

    Attributes:
        message: What it shows.
        rendered: Its tokens.
        images: Its images as the engine takes them, with their places in the whole dialogue.
    """

    message: Message
    rendered: Rendered
    images: list[EngineImage]


class EpisodePlayer:
    """Plays the episodes of a group, each a coroutine between the steps of the worker's engine.

    Args:
        worker: Its engine, renderer and threads.
        task: The environments of the group's task.
        limits: Lengths and temperature.
    """

    def __init__(self, worker: InferenceWorker, task: TaskEnvironments, limits: Limits) -> None:
        self._serving, self._renderer = worker.serving, worker.renderer
        self._tools, self._rendering = worker.tools, worker.rendering
        self._task = task
        self._limits = limits
        self._prompt: _Prompt | None = None

    def prepare(self, sample: Sample) -> None:
        """Have the images of the group's prompt loaded in threads, before its first episode begins."""
        self._rendering.submit(self._prepare, sample)

    async def play(self, job: EpisodeJob, slot: Slot) -> Trajectory:
        """Play an episode to its end.

        Args:
            job: The episode.
            slot: Its place in the order of sequences; closed when it is over.

        Raises:
            EpisodeError: If the prompt cannot be rendered or leaves no room for an answer.
            LedgerError: If the trajectory breaks an invariant.
        """
        partner = _Partner(self._task.create)
        try:
            await slot.granted
            ledger = await self._dialogue(job, slot, partner)
        finally:
            slot.close()
            await aside(self._tools, partner.close)
        await aside(self._tools, check_ledger, ledger, self._renderer.image_token_id, self._limits.max_length)
        return ledger

    async def _dialogue(self, job: EpisodeJob, slot: Slot, partner: _Partner) -> Trajectory:
        """Let model and environment take turns until the episode is over."""
        messages = await aside(self._tools, partner.start, job.sample)
        prompt = await aside(self._rendering, self._render_prompt, job, messages)
        ledger = Trajectory(job.sample.id, job.task, job.group, job.episode)
        append_prompt(ledger, prompt.rendered, messages)
        images = list(prompt.images)
        for turn in itertools.count():
            request = self._request(job, turn, ledger, images, slot.next_id())
            completion = await self._serving.sample(slot, request)
            text, reply = await aside(self._tools, self._answer, partner, completion)
            append_turn(ledger, completion, text_message("assistant", text))
            ledger.stop_reason = "max_tokens"
            if reply is None:
                break
            ledger.tool_calls += reply.calls
            if reply.done or reply.message is None:
                ledger.stop_reason = "max_turns" if reply.calls else "answer"
                break
            observed = await aside(self._rendering, self._observe, ledger, reply.message)
            if observed is None:
                break
            append_observation(ledger, observed.rendered, observed.message)
            images += observed.images
        return ledger

    def _prepare(self, sample: Sample) -> None:
        """Plan the loading of a prompt's images."""
        with contextlib.suppress(ValueError):  # `play` says what is wrong with a prompt
            prepare([self._renderer.counting().render(sample.messages)], self._renderer)

    def _render_prompt(self, job: EpisodeJob, messages: tuple[Message, ...]) -> _Prompt:
        """Tokenise a prompt and load its images, once for all episodes to which it is shown.

        Raises:
            EpisodeError: If it cannot be shown or is too long.
        """
        if self._prompt is None or self._prompt.messages != messages:
            rendered = _render_prompt(self._renderer, job.sample, job.task, messages, self._task.tools)
            if not self._limits.leave_room(len(rendered.token_ids)):
                raise EpisodeError(
                    f"{_named(job.sample, job.task)} has {len(rendered.token_ids)} prompt tokens, which"
                    f" leaves no room in max_length = {self._limits.max_length}; raise rollout.max_length or"
                    " lower model.max_pixels"
                )
            self._prompt = _Prompt(messages, rendered, engine_images(rendered.images, self._renderer))
        return self._prompt

    def _request(
        self, job: EpisodeJob, turn: int, ledger: Trajectory, images: list[EngineImage], request_id: str
    ) -> Request:
        """Ask for the episode's next turn."""
        room = self._limits.max_length - len(ledger.token_ids)
        return Request(
            id=request_id,
            token_ids=tuple(ledger.token_ids),
            images=tuple(images),
            max_tokens=min(self._limits.max_new_tokens, room),
            temperature=self._limits.temperature,
            seed=stable_seed(job.seed, turn),
        )

    def _answer(self, partner: _Partner, completion: Completion) -> tuple[str, EnvironmentReply | None]:
        """Read a turn, and let the environment answer it unless it was cut off."""
        text = self._renderer.decode(completion.token_ids)
        return text, partner.step(text) if completion.finish_reason == "stop" else None

    def _observe(self, ledger: Trajectory, message: Message) -> _Observation | None:
        """Tokenise a reply, text and images together; None if no token could be sampled after it.

        A reply that cannot be shown is replaced, because a tool must not end the rollout.
        """
        try:
            _refuse_videos([message])
            found = self._observation(ledger, message)
        except (ImageError, RenderError) as error:
            logger.warning("sample %s: a tool's reply cannot be shown: %s", ledger.sample_id, error)
            found = self._observation(ledger, _UNREADABLE)
        full = len(ledger.token_ids) + len(found.rendered.token_ids) >= self._limits.max_length
        return None if full else found

    def _observation(self, ledger: Trajectory, message: Message) -> _Observation:
        """Tokenise a reply and load its images."""
        rendered, start = self._renderer.observation(message), len(ledger.token_ids)
        shown = [TrajectoryImage(each.ref, start + each.offset, each.num_tokens) for each in rendered.images]
        return _Observation(message, rendered, engine_images(shown, self._renderer))


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
