"""Rendered dialogues, and the placeholders in them.

A chat template writes one token for each image and video; a model wants as many as the image has features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from posttrain.types import ImageRef, TrajectoryImage, TrajectoryMedium, TrajectoryVideo, VideoRef

#: An image, with its hash if its pixels were loaded, and its number of placeholders.
ImageTokens = tuple[ImageRef, int]
#: A video, likewise, and the tokens that stand for it: placeholders, and texts that tell the time.
VideoTokens = tuple[VideoRef, list[int]]


class RenderError(ValueError):
    """A dialogue cannot be shown to the model faithfully."""


@dataclass
class Rendered:
    """Tokens of a dialogue or of a part of one.

    Attributes:
        token_ids: [T] ids, placeholders expanded.
        supervised: [T] True on the assistant turns that are learned from, their end-of-turn token included.
        images: The images with their places in `token_ids`, in order, and with their hashes unless they were
            rendered from their headers alone.
        videos: The videos, likewise.
    """

    token_ids: list[int]
    supervised: list[bool]
    images: list[TrajectoryImage]
    videos: list[TrajectoryVideo] = field(default_factory=list)

    @property
    def media(self) -> list[TrajectoryMedium]:
        """All that it shows: its images, then its videos."""
        return [*self.images, *self.videos]


def expand(
    ids: Sequence[int],
    supervised: Sequence[bool],
    images: tuple[int, Iterable[ImageTokens]],
    videos: tuple[int, Iterable[VideoTokens]],
) -> Rendered:
    """Replace the one placeholder of every image and video by as many tokens as it takes.

    Args:
        ids: [T] ids as the template wrote them.
        supervised: [T] whether each token is learned from.
        images: The image placeholder, and one image for each time that it occurs, in order.
        videos: The video placeholder, and the videos likewise.
    """
    image_id, video_id = images[0], videos[0]
    pictures, clips = iter(images[1]), iter(videos[1])
    rendered = Rendered([], [], [])
    start = 0
    for at in [at for at, token in enumerate(ids) if token in (image_id, video_id)]:
        rendered.token_ids += ids[start:at]
        rendered.supervised += supervised[start:at]
        offset = len(rendered.token_ids)
        if ids[at] == image_id:
            picture, number = next(pictures)
            tokens = [image_id] * number
            rendered.images.append(TrajectoryImage(picture, offset, number))
        else:
            clip, tokens = next(clips)
            rendered.videos.append(TrajectoryVideo(clip, offset, _runs(tokens, video_id, offset)))
        rendered.token_ids += tokens
        rendered.supervised += [False] * len(tokens)
        start = at + 1
    rendered.token_ids += ids[start:]
    rendered.supervised += supervised[start:]
    return rendered


def _runs(tokens: Sequence[int], wanted: int, offset: int) -> list[tuple[int, int]]:
    """Find every run of a token.

    Args:
        tokens: Token ids.
        wanted: The token to find.
        offset: Place of the first of `tokens`.

    Returns:
        (offset, number) of each run.
    """
    runs: list[tuple[int, int]] = []
    for place, token in enumerate(tokens, start=offset):
        if token == wanted and runs and sum(runs[-1]) == place:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        elif token == wanted:
            runs.append((place, 1))
    return runs
