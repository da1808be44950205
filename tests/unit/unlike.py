"""Dialogues that differ in kind: text alone, images, videos, both; ranks meet them at the same time."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from posttrain.media.images import save_image
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.types import Block, Message, VideoRef, text_message

#: What a dialogue shows. `images` are two, of other sizes than the one of `image`.
KINDS = ("text", "image", "images", "video", "both")


def dialogues(folder: Path, make_video: Callable[..., VideoRef]) -> dict[str, tuple[Message, ...]]:
    """Write the pictures of a dialogue of each kind; the answers have other lengths, too."""
    red = Block("image", image=save_image(Image.new("RGB", (64, 64), "red"), folder))
    blue = Block("image", image=save_image(Image.new("RGB", (32, 128), "blue"), folder))
    film = Block("video", video=make_video(folder / "film.mp4", 20))
    shown = {"text": (), "image": (red,), "images": (blue, red), "video": (film,), "both": (film, blue)}
    return {
        kind: (
            Message("user", (*shown[kind], Block("text", text="What is it?"))),
            text_message("assistant", "A" * (number + 3)),
        )
        for number, kind in enumerate(KINDS)
    }


def rendered(renderer: Renderer, told: dict[str, tuple[Message, ...]]) -> dict[str, Rendered]:
    """Render a dialogue of each kind."""
    return {kind: renderer.render(messages) for kind, messages in told.items()}
