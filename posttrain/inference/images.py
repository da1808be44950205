"""Images of a dialogue as an inference engine takes them."""

from collections.abc import Iterable

from posttrain.inference.engine import EngineImage
from posttrain.rendering.rendering import Renderer
from posttrain.types import TrajectoryImage

#: Prompts that are rendered before an engine has room for them, so that threads load their images meanwhile.
PROMPTS_AHEAD = 16


def engine_images(images: Iterable[TrajectoryImage], renderer: Renderer) -> list[EngineImage]:
    """Load the pixels of images whose places in a dialogue are known.

    Args:
        images: Images with the places of their placeholders.
        renderer: The renderer of the checkpoint that the engine serves.

    Raises:
        ImageChangedError: If a file's pixels do not match the hash.
        ImageError: If a file cannot be read.
    """
    loaded: list[EngineImage] = []
    for image in images:
        pixels = renderer.media.load(image.ref)
        place = (image.offset, image.num_tokens)
        loaded.append(
            EngineImage(
                pixels.sha256, pixels.values, pixels.grid_thw, *place, renderer.media.maker.image_patches
            )
        )
    return loaded
