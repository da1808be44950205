"""Images of a dialogue as an inference engine takes them."""

from collections.abc import Iterable

from posttrain.inference.engine import EngineImage
from posttrain.rendering.rendering import Renderer
from posttrain.types import TrajectoryImage


def engine_images(images: Iterable[TrajectoryImage], renderer: Renderer) -> list[EngineImage]:
    """Load the pixels of images whose places in a dialogue are known.

    Args:
        images: Images with their hashes and the places of their placeholders.
        renderer: The renderer of the checkpoint that the engine serves.

    Raises:
        ImageChangedError: If a file's pixels do not match the hash.
        ImageError: If a file cannot be read.
    """
    loaded: list[EngineImage] = []
    for image in images:
        values, grid_thw = renderer.pixels(image.ref)
        loaded.append(EngineImage(image.ref.sha256, values, grid_thw, image.offset, image.num_tokens))
    return loaded
