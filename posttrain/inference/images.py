"""Images of a dialogue as an inference engine takes them."""

from collections.abc import Iterable

from posttrain.inference.engine import EngineImage
from posttrain.rendering.rendering import Renderer
from posttrain.types import TrajectoryImage


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
        patches = renderer.media.patches(pixels)
        loaded.append(EngineImage(pixels.sha256, patches, pixels.grid_thw, image.offset, image.num_tokens))
    return loaded
