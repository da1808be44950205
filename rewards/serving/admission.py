"""Images and videos that come with a request: by reference below allowed folders, or images as base64."""

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from posttrain.media.images import ImageError, check_image
from posttrain.types import Block, ImageRef, Message, RewardInput
from rewards.wire import WireError

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,20};base64,")


class ImageAdmission:
    """Lets the images of a request in, or refuses the request before anything is read.

    A context manager: images that came as base64 lie in a folder of their own until it ends.

    Args:
        roots: Resolved folders below which references may lead.
    """

    def __init__(self, roots: Sequence[Path]):
        self._roots = roots
        self._stack = contextlib.ExitStack()
        self._directory: Path | None = None  # most requests need none, and making one takes time

    def __enter__(self) -> "ImageAdmission":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def admit(self, inputs: Sequence[RewardInput]) -> list[RewardInput]:
        """Return the episodes with images that rewards may open.

        Raises:
            WireError: If a reference leads elsewhere, or what should be an image is none.
        """
        return [
            dataclasses.replace(
                x,
                prompt=tuple(self._message(message) for message in x.prompt),
                response=tuple(self._message(message) for message in x.response),
            )
            for x in inputs
        ]

    def _message(self, message: Message) -> Message:
        return Message(message.role, tuple(self._block(block) for block in message.content))

    def _block(self, block: Block) -> Block:
        for file in block.video.paths if block.video is not None else ():
            self._check_reference(file, "video")
        if block.image is None:
            return block
        path = block.image.path
        if found := _DATA_URL.match(path):
            return dataclasses.replace(block, image=self._store(path[found.end() :]))
        self._check_reference(path, "image")
        return block

    def _check_reference(self, path: str, kind: str) -> None:
        try:
            target = Path(path).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # loops of links, NUL characters
            raise WireError(f"{kind} {path[:200]!r} cannot be followed: {error}") from None
        if not Path(path).is_absolute() or not any(target.is_relative_to(root) for root in self._roots):
            instead = "; send it as data:image/png;base64,… instead" if kind == "image" else ""
            raise WireError(
                f"{kind} {path[:200]!r} is outside the folders that this server reads"
                f" (rewards serve --image-root DIR){instead}"
            )

    def _store(self, encoded: str) -> ImageRef:
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise WireError(f"an image is not valid base64: {error}") from None
        if self._directory is None:
            folder = tempfile.TemporaryDirectory(prefix="posttrain-rewards-")
            self._directory = Path(self._stack.enter_context(folder))
        path = self._directory / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        try:
            check_image(path)
        except ImageError as error:
            raise WireError(f"an image sent as base64 cannot be used: {error}") from None
        return ImageRef(str(path))
