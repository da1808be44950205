"""Play an episode: a policy and an environment take turns, in one ledger of tokens.

Nothing in an episode depends on time or on the episodes beside it, as far as the engine's arithmetic repeats:
the seed of each turn is its own.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from posttrain.failures import ToolFailure, WorldError
from posttrain.inference.engine import Completion, EngineImage, Request, stable_seed
from posttrain.inference.images import DialogueImages
from posttrain.inference.serving import aside
from posttrain.inference.slots import Slot
from posttrain.inference.worker import InferenceWorker
from posttrain.joints import Environment
from posttrain.media.images import ImageError
from posttrain.media.videos import VideoError
from posttrain.rendering.pixels import ImageChangedError
from posttrain.rendering.rendered import Rendered, RenderError
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.ledger import (
    append_observation,
    append_prompt,
    append_turn,
    check_ledger,
    last_turn,
    with_hashes,
)
from posttrain.rollout.limits import Limits
from posttrain.rollout.partner import Partner
from posttrain.types import (
    Message,
    Sample,
    ToolSpec,
    Trajectory,
    TrajectoryImage,
    TrajectoryMedium,
    text_message,
)

logger = logging.getLogger(__name__)

#: Most times that an episode is played: a failure of the world may pass.
ATTEMPTS = 2
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
class _Observation:
    """A reply of the environment, to be appended to a ledger.

    Attributes:
        messages: What it shows.
        rendered: Its tokens.
        images: Its images, with their places in the whole dialogue.
    """

    messages: Sequence[Message]
    rendered: Rendered
    images: list[TrajectoryImage]


@dataclass(frozen=True)
class _Talk:
    """An episode under way.

    Attributes:
        job: The episode.
        slot: Its place in the order of sequences.
        pictures: Its images and videos in the engine.
        ledger: Its ledger.
        images: The images and videos shown so far, as they were rendered: perhaps without hashes.
    """

    job: EpisodeJob
    slot: Slot
    pictures: DialogueImages
    ledger: Trajectory
    images: list[TrajectoryMedium] = field(default_factory=list)


class EpisodePlayer:
    """Plays the episodes of a group, each a coroutine between the steps of the worker's engine.

    Args:
        worker: Its engine, renderer and threads.
        task: The environments of the group's task.
        limits: Lengths and temperature.
    """

    def __init__(self, worker: InferenceWorker, task: TaskEnvironments, limits: Limits) -> None:
        self._serving, self._images = worker.serving, worker.images
        self._renderer = worker.renderer.counting()  # pixels are loaded for the engine alone
        self._pictures = worker.images.open()
        self._tools, self._rendering = worker.tools, worker.rendering
        self._task = task
        self._limits = limits
        self._messages: tuple[Message, ...] = ()  # that the newest prompt shows
        self._prompt: asyncio.Future[Rendered] | None = None

    def prepare(self, sample: Sample) -> None:
        """Have what the group's prompt shows loaded in threads, before its first episode begins."""
        if any(message.images or message.videos for message in sample.messages):
            self._rendering.submit(self._prepare, sample)

    def close(self) -> None:
        """Say that every episode of the group is over."""
        self._pictures.close()

    async def play(self, job: EpisodeJob, slot: Slot) -> Trajectory:
        """Play an episode to its end; once more from its beginning where the world fails it.

        Args:
            job: The episode.
            slot: Its place in the order of sequences; closed when it is over.

        Raises:
            EpisodeError: If the prompt cannot be rendered or leaves no room for an answer.
            LedgerError: If the trajectory breaks an invariant.
        """
        failures: list[ToolFailure] = []
        try:
            await slot.granted
            while True:
                ledger = Trajectory(job.sample.id, job.task, job.group, job.episode)
                await self._attempt(job, slot, ledger, failures)
                if not ledger.failed or len(failures) == ATTEMPTS:
                    ledger.failures = failures
                    return ledger
        finally:
            slot.close()

    async def _attempt(
        self, job: EpisodeJob, slot: Slot, ledger: Trajectory, failures: list[ToolFailure]
    ) -> None:
        """Play an episode in an environment of its own; add to the failures if the world fails it."""
        partner = Partner(self._task.create)
        try:
            await self._dialogue(job, slot, partner, ledger)
        except WorldError as error:
            logger.warning("%s: %s failed: %s", _named(job.sample, job.task), error.tool, error)
            failures.append(ToolFailure(error.tool, str(error), error.seconds))
            ledger.prompt = ledger.prompt or job.sample.messages
            ledger.stop_reason = "error"
        finally:
            if not partner.closed:  # the episode failed or was cancelled, and may be while this goes on
                await asyncio.shield(aside(self._tools, partner.give_up))

    async def _dialogue(self, job: EpisodeJob, slot: Slot, partner: Partner, ledger: Trajectory) -> None:
        """Let model and environment take turns until the episode is over."""
        messages = await aside(self._tools, partner.start, job.sample)
        rendered = await self._prompt_of(job, messages)
        talk = _Talk(job, slot, self._images.open(), ledger)
        try:
            images = await self._begin(talk, rendered, messages)
            for turn in itertools.count():
                request = self._request(job, turn, ledger, images, slot.next_id())
                completion = await self._serving.sample(slot, request)
                del request, images  # or their pixels would stay while a tool is at work
                talk.pictures.release()
                reply = await aside(self._tools, self._take_turn, partner, ledger, completion)
                if reply is None:
                    break
                images = await self._observe(talk, reply)
                if images is None:
                    await aside(self._tools, self._finish, partner, ledger, "max_tokens")
                    break
        finally:
            talk.pictures.close()

    def _prepare(self, sample: Sample) -> None:
        """Plan the loading of a prompt's images and videos."""
        with contextlib.suppress(ValueError):  # `play` says what is wrong with a prompt
            self._pictures.prefetch(self._renderer.render(sample.messages).media)

    async def _prompt_of(self, job: EpisodeJob, messages: tuple[Message, ...]) -> Rendered:
        """Tokenise a prompt, once for all episodes to which it is shown.

        Raises:
            EpisodeError: If it cannot be shown or is too long.
        """
        if self._prompt is None or self._messages != messages:
            self._messages = messages
            self._prompt = aside(self._rendering, self._render_prompt, job, messages)
        return await asyncio.shield(self._prompt)  # which an episode that is cancelled leaves to the others

    def _render_prompt(self, job: EpisodeJob, messages: tuple[Message, ...]) -> Rendered:
        """Tokenise a prompt; raise EpisodeError if it cannot be shown or is too long."""
        rendered = _render_prompt(self._renderer, job.sample, job.task, messages, self._task.tools)
        if not self._limits.leave_room(len(rendered.token_ids)):
            raise EpisodeError(
                f"{_named(job.sample, job.task)} has {len(rendered.token_ids)} prompt tokens, which"
                f" leaves no room in max_length = {self._limits.max_length}; raise rollout.max_length or"
                " lower model.max_pixels or model.video_max_tokens"
            )
        return rendered

    async def _begin(
        self, talk: _Talk, rendered: Rendered, messages: tuple[Message, ...]
    ) -> list[EngineImage]:
        """Begin the ledger with the prompt; return its images and videos as the engine takes them.

        Raises:
            EpisodeError: If one of them cannot be read.
        """
        try:
            images = await talk.slot.images(talk.pictures, rendered.media)
        except (ImageError, ImageChangedError, VideoError) as error:
            raise EpisodeError(
                f"{_named(talk.job.sample, talk.job.task)} cannot be shown: {error}"
            ) from error
        append_prompt(talk.ledger, with_hashes(rendered, images), messages)
        talk.images.extend(rendered.media)
        return images

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
            stops=self._renderer.stops if self._task.tools else (),
        )

    def _take_turn(
        self, partner: Partner, ledger: Trajectory, completion: Completion
    ) -> Sequence[Message] | None:
        """Append a turn, and let the environment answer it; return what is shown next, None at the end."""
        continues = bool(ledger.response) and ledger.response[-1].role == "tool"
        text = self._renderer.decode(completion.token_ids, continues=continues)
        append_turn(ledger, completion, text_message("assistant", text))
        if completion.finish_reason == "length":
            return self._finish(partner, ledger, "max_tokens")
        reply = partner.step(text)
        ledger.tool_calls += reply.calls
        if reply.done or not reply.messages:
            return self._finish(partner, ledger, "max_turns" if reply.truncated else "answer")
        return reply.messages

    def _finish(self, partner: Partner, ledger: Trajectory, stop_reason: str) -> None:
        """Close an episode, and check its ledger."""
        ledger.outcome = dict(partner.close())
        ledger.stop_reason = stop_reason
        placeholders = (self._renderer.image_token_id, self._renderer.video_token_id)
        check_ledger(ledger, placeholders, self._limits.max_length)

    async def _observe(self, talk: _Talk, messages: Sequence[Message]) -> list[EngineImage] | None:
        """Append a reply, text and images together, unless no token could be sampled after it.

        A reply that cannot be shown is replaced, because a tool must not end the rollout.

        Returns:
            All that the dialogue shows as the engine takes it; None if the reply was not appended.
        """
        try:
            shown = await self._show(talk, messages)
        except (ImageError, ImageChangedError, RenderError) as error:
            logger.warning("sample %s: a tool's reply cannot be shown: %s", talk.ledger.sample_id, error)
            talk.pictures.release()
            shown = await self._show(talk, [_UNREADABLE] * len(messages))
        if shown is None:
            return None
        found, images = shown
        hashed = with_hashes(found.rendered, images[len(talk.images) :])
        append_observation(talk.ledger, hashed, *found.messages)
        talk.images.extend(found.images)
        return images

    async def _show(
        self, talk: _Talk, messages: Sequence[Message]
    ) -> tuple[_Observation, list[EngineImage]] | None:
        """Tokenise a reply, and load its images beside those before; None if there is no room after it."""
        found = await aside(self._rendering, self._observation, talk.ledger, messages)
        if found is None:
            return None
        asked = [*talk.images, *found.images]
        return found, await talk.slot.images(talk.pictures, asked)

    def _observation(self, ledger: Trajectory, messages: Sequence[Message]) -> _Observation | None:
        """Tokenise a reply; None if no token could be sampled after it.

        Raises:
            RenderError: If it cannot be shown, as one with a video.
            ImageError: If an image of it cannot be read.
        """
        if any(message.videos for message in messages):
            raise RenderError("it shows a video, and only prompts may; reply with frames of it, as images")
        rendered = self._renderer.observation(*messages, turn=last_turn(ledger))
        start = len(ledger.token_ids)
        if start + len(rendered.token_ids) >= self._limits.max_length:
            return None
        shown = [TrajectoryImage(each.ref, start + each.offset, each.num_tokens) for each in rendered.images]
        return _Observation(messages, rendered, shown)


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
        try:
            messages = environment.start(sample)
        except WorldError:  # whether it passes, the episode will tell
            messages = sample.messages
        return len(_render_prompt(renderer, sample, task, messages, environments[task].tools).token_ids)
    finally:
        with contextlib.suppress(WorldError):
            environment.close()


def _render_prompt(
    renderer: Renderer, sample: Sample, task: str, messages: tuple[Message, ...], tools: Sequence[ToolSpec]
) -> Rendered:
    """Tokenise a prompt; raises EpisodeError if it cannot be shown."""
    try:
        return renderer.render(messages, tools, add_generation_prompt=True)
    except (ImageError, RenderError, ImageChangedError, VideoError) as error:
        raise EpisodeError(f"{_named(sample, task)} cannot be shown: {error}") from error


def _named(sample: Sample, task: str) -> str:
    return f"sample {sample.id!r} of task {task!r}"
