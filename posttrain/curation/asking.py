"""Ask a model, wherever it runs; its answers are cached, so that no question is asked twice."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from posttrain.chat_endpoint import BadReply, Completion, digest
from posttrain.config.endpoints import CheckpointConfig
from posttrain.curation.answers import AnswerCache
from posttrain.curation.outcomes import RowError
from posttrain.files.strict_json import Json, JsonObject
from posttrain.media.videos import VideoError, video_hash
from posttrain.types import Block, ImageRef, Message, VideoRef

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled.

    Attributes:
        temperature: Sampling temperature; 0 for greedy decoding.
        max_tokens: Most tokens of an answer.
        seed: Seed of the answer, different for each answer to the same query.
    """

    temperature: float
    max_tokens: int
    seed: int


class Model(Protocol):
    """A model that answers: behind an endpoint, or in engines of this run."""

    def identity(self, messages: Sequence[Message], sampling: Sampling) -> object:
        """Return everything that an answer depends on, as a JSON value; called in a thread.

        Raises:
            RowError: If the messages cannot be sent.
        """
        ...

    async def answer(
        self, messages: Sequence[Message], sampling: Sampling, read: Callable[[Completion], T]
    ) -> tuple[Completion, T]:
        """Ask for a new answer.

        Returns:
            The answer, and the value that `read` returned for it.

        Raises:
            RowError: If there was no answer that `read` accepts; it refuses one by raising `BadReply`.
            CurationError: If no row will get an answer.
        """
        ...


#: From the name and the content of a recipe's `checkpoint` entry to its model.
OpenCheckpoint = Callable[[str, CheckpointConfig], AbstractAsyncContextManager[Model]]


class CachedModel:
    """A model whose answers are cached.

    Args:
        model: The model.
        cache: The cache.
    """

    def __init__(self, model: Model, cache: AnswerCache):
        self._model, self._cache = model, cache

    async def ask(
        self, messages: Sequence[Message], sampling: Sampling, read: Callable[[Completion], T]
    ) -> T:
        """Ask the model, or take the answer from the cache if the same was asked before.

        Args:
            messages: The dialogue, images by reference.
            sampling: How to sample.
            read: Reads a value from the answer, or refuses it by raising `BadReply`.

        Returns:
            The value that `read` returned.

        Raises:
            RowError: If there was no answer that `read` accepts, with the last reason.
            CurationError: If no row will get an answer.
        """
        key = digest(await asyncio.to_thread(self._model.identity, messages, sampling))
        if (known := _completion(self._cache.get(key))) is not None:
            with contextlib.suppress(BadReply):
                return read(known)
        answer, value = await self._model.answer(messages, sampling, read)
        self._cache.put(key, asdict(answer))
        return value


def chat(
    messages: Sequence[Message],
    encode: Callable[[ImageRef], str],
    film: Callable[[VideoRef], Json] | None = None,
) -> list[Json]:
    """Convert messages to those of a chat completion request.

    A tool's result becomes a user turn within <tool_response>, as Qwen's templates write it: endpoints take
    the role `tool` only with the identifiers of the calls, which canonical rows do not have.

    Args:
        messages: The dialogue.
        encode: Makes an image's URL.
        film: Makes what stands for a video; None for an endpoint, which is shown none.

    Raises:
        RowError: If a block is neither a text nor an image, nor a video that may be shown.
    """
    found: list[Json] = []
    for message in messages:
        role, blocks = message.role, message.content
        if role == "tool":
            opening, closing = (
                Block("text", text="<tool_response>\n"),
                Block("text", text="\n</tool_response>"),
            )
            role, blocks = "user", (opening, *blocks, closing)
        content: list[Json] = [_part(block, encode, film) for block in blocks]
        plain = all(block.type == "text" for block in blocks)
        found.append({"role": role, "content": "".join(block.text for block in blocks) if plain else content})
    return found


def file_digest(image: ImageRef) -> str:
    """Compute the hash of an image file, for a model's identity, without decoding the image.

    Raises:
        RowError: If the file cannot be read.
    """
    try:
        with Path(image.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RowError(f"image {image.path} cannot be read: {error.strerror}") from None


def video_digest(video: VideoRef) -> Json:
    """Return the hash of a video's files, and which part of it is shown, for a model's identity.

    Raises:
        RowError: If a file cannot be read.
    """
    try:
        return asdict(video) | {"paths": [], "sha256": video_hash(video)}
    except VideoError as error:
        raise RowError(str(error)) from None


def checkpoint_version(checkpoint: str) -> list[Json]:
    """Return a checkpoint's name and, of a directory, each file's name, size and time of last change."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return [checkpoint]
    stats = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return [checkpoint, *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


def _completion(cached: Json) -> Completion | None:
    """Read an answer from the cache; None if there is none, or it is not of this form."""
    if not isinstance(cached, dict):
        return None
    text, truncated = cached.get("text"), cached.get("truncated")
    return Completion(text, truncated) if isinstance(text, str) and isinstance(truncated, bool) else None


def _part(
    block: Block, encode: Callable[[ImageRef], str], film: Callable[[VideoRef], Json] | None
) -> JsonObject:
    """Convert a text, an image or a video to a part of a message."""
    if block.type == "text":
        return {"type": "text", "text": block.text}
    if block.video is not None and film is not None:
        return {"type": "video", "video": film(block.video)}
    if block.image is None:
        raise RowError(f"a block of type {block.type!r} cannot be sent to an endpoint")
    return {"type": "image_url", "image_url": {"url": encode(block.image)}}
