"""Asking a model, wherever it runs: its answers are cached, so that the same is never asked twice."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from posttrain.chat_endpoint import BadReply, Completion, digest
from posttrain.config.endpoints import CheckpointConfig
from posttrain.curation.answers import AnswerCache
from posttrain.curation.outcomes import RowError
from posttrain.types import Block, ImageRef, Message

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled.

    Attributes:
        temperature: 0 is greedy.
        max_tokens: Longest answer, in tokens.
        seed: Different for each answer to one query.
    """

    temperature: float
    max_tokens: int
    seed: int


class Model(Protocol):
    """What answers: a model behind an endpoint, or one in engines of our own."""

    def identity(self, messages: Sequence[Message], sampling: Sampling) -> Any:
        """A JSON value that differs where the answer may; runs in a thread.

        Raises:
            RowError: If the messages cannot be sent.
        """
        ...

    async def answer(
        self, messages: Sequence[Message], sampling: Sampling, read: Callable[[Completion], T]
    ) -> tuple[Completion, T]:
        """A new answer, and what `read` made of it.

        Raises:
            RowError: If there was none that `read` could use (it raises `BadReply`).
            CurationError: If there will be none for any row.
        """
        ...


#: Makes the model of a recipe's `checkpoint` entry, given the entry's name.
OpenCheckpoint = Callable[[str, CheckpointConfig], AbstractAsyncContextManager[Model]]


class CachedModel:
    """A model whose answers are kept.

    Args:
        model: What is asked.
        cache: The answers had before.
    """

    def __init__(self, model: Model, cache: AnswerCache):
        self._model, self._cache = model, cache

    async def ask(
        self, messages: Sequence[Message], sampling: Sampling, read: Callable[[Completion], T]
    ) -> T:
        """The model's answer, from the cache where the same was asked before.

        Args:
            messages: The dialogue, images by reference.
            sampling: How to sample.
            read: Makes something of the answer, or refuses it by a `BadReply`.

        Raises:
            RowError: If there was no answer that could be used, with the last reason.
            CurationError: If there will be none for any row.
        """
        key = digest(await asyncio.to_thread(self._model.identity, messages, sampling))
        if (known := self._cache.get(key)) is not None:
            with contextlib.suppress(BadReply, TypeError):
                return read(Completion(**known))
        answer, value = await self._model.answer(messages, sampling, read)
        self._cache.put(key, asdict(answer))
        return value


def chat(messages: Sequence[Message], encode: Callable[[ImageRef], str]) -> list[dict[str, Any]]:
    """Messages as a chat completion takes them.

    A tool's result becomes a user's turn within <tool_response>, as Qwen's templates write it: without the
    identifiers of the calls, which canonical rows do not have, endpoints refuse the role `tool`.

    Args:
        messages: The dialogue.
        encode: Makes an image's URL.

    Raises:
        RowError: If a block is neither a text nor an image.
    """
    found: list[dict[str, Any]] = []
    for message in messages:
        blocks = [_part(block, encode) for block in message.content]
        role = message.role
        if role == "tool":
            role, around = "user", ("<tool_response>\n", "\n</tool_response>")
            blocks = [{"type": "text", "text": around[0]}, *blocks, {"type": "text", "text": around[1]}]
        plain = all(block["type"] == "text" for block in blocks)
        found.append(
            {"role": role, "content": "".join(block["text"] for block in blocks) if plain else blocks}
        )
    return found


def file_digest(image: ImageRef) -> str:
    """An image's content, for a model's identity, without decoding it.

    Raises:
        RowError: If the file cannot be read.
    """
    try:
        with Path(image.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RowError(f"image {image.path} cannot be read: {error.strerror}") from None


def checkpoint_version(checkpoint: str) -> list[Any]:
    """What tells a checkpoint from another: its name, and of a directory each file's size and time."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return [checkpoint]
    stats = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return [checkpoint, *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


def _part(block: Block, encode: Callable[[ImageRef], str]) -> dict[str, Any]:
    if block.type == "text":
        return {"type": "text", "text": block.text}
    if block.image is None:
        raise RowError(f"a block of type {block.type!r} cannot be sent to an endpoint")
    return {"type": "image_url", "image_url": {"url": encode(block.image)}}
