"""Turn token lists and image references into the tensors of one forward pass."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike

from posttrain.rendering.pixel_making import Pixels
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.video_frames import TOLD_SECONDS
from posttrain.types import TrajectoryImage, TrajectoryVideo, VideoRef

#: Key of a batch's [images] integers: the number in `pixel_values` of the image of each `image_grid_thw` row.
IMAGE_INDEX = "image_index"
#: The same of videos.
VIDEO_INDEX = "video_index"


class CollationError(ValueError):
    """Placeholder tokens and images do not fit together; training on them would be silently wrong."""


class TokensWithImages(Protocol):
    """One sequence of a batch: a `Rendered` dialogue or a `Trajectory`."""

    token_ids: list[int]
    images: list[TrajectoryImage]
    videos: list[TrajectoryVideo]


def collate(
    items: Sequence[TokensWithImages],
    renderer: Renderer,
    device: torch.device | str | None = None,
    *,
    images_once: bool = False,
) -> dict[str, torch.Tensor]:
    """Pad the sequences of a batch on the right, and load their pixels.

    Args:
        items: B sequences.
        renderer: The renderer of the checkpoint that the ids were made for.
        device: The device of the tensors; where it is None pixels are on the renderer's, and others on the
            CPU.
        images_once: Whether the pixels of an image or video that occurs several times are in the batch once,
            as models from `load_model` take them: the vision tower then sees it once, and its gradient is the
            same, the sum over all places. The answers of a preference pair, and the episodes of a group, have
            the same prompt and images.

    Returns:
        Arguments of the model by name: `input_ids`, `attention_mask` and, unless it is for a text model,
        `mm_token_type_ids` (1 on image placeholders, 2 on video placeholders; M-RoPE needs it), each [B, L].
        If there are images, also `pixel_values` [patches of all images, values per patch],
        `image_grid_thw` [images, 3] and, if they are there once, `image_index` [images], the number of each
        among them. If there are videos, also `pixel_values_videos`, `video_grid_thw`, if they are there once
        `video_index` [videos] and, for Qwen2.5-VL, `second_per_grid_ts` [videos].

    Raises:
        CollationError: If a sequence's placeholders are not exactly those of its images and videos.
        ImageChangedError: If an image or a video file has changed since it was rendered.
        VideoError: If a video breaks off before its last frame.
    """
    input_ids = pad_rows([item.token_ids for item in items], renderer.pad_token_id, np.int64)
    lengths = torch.tensor([len(item.token_ids) for item in items])
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    types = np.zeros(input_ids.shape, dtype=np.int32)
    pixels = _images(items, renderer, types, images_once) | _videos(items, renderer, types, images_once)
    mm_token_type_ids = torch.from_numpy(types)
    written = (input_ids == renderer.image_token_id) + 2 * (input_ids == renderer.video_token_id).int()
    wrong = (written != mm_token_type_ids).any(dim=1)
    if wrong.any():
        raise CollationError(
            f"sequences {wrong.nonzero().flatten().tolist()} of the batch have placeholders where no image or"
            " video belongs, or none where one does; look for cut sequences and sampled placeholder tokens"
        )
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    if renderer.family != "text":
        batch["mm_token_type_ids"] = mm_token_type_ids
    return {name: tensor.to(device) for name, tensor in (batch | pixels).items()}


def prepare(items: Sequence[TokensWithImages], renderer: Renderer) -> None:
    """Have the pixels of sequences made ready that will be collated soon, in their order.

    Nothing depends on it but the time that collating them takes; what is wrong with one is raised then.
    """
    images = [(image.ref, image.num_tokens) for item in items for image in item.images]
    videos = [(video.ref, video.num_tokens) for item in items for video in item.videos]
    if images or videos:
        renderer.media.prepare(images, videos)


def _images(
    items: Sequence[TokensWithImages], renderer: Renderer, types: np.ndarray, once: bool
) -> dict[str, torch.Tensor]:
    """Load the images of a batch, and write 1 into `types` [B, L] at their placeholders."""
    # An image that is shown twice is loaded once, whatever the cache has room for.
    loaded: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    shown: list[str] = []
    for row, item in enumerate(items):
        for image in item.images:
            key = image.ref.sha256 or image.ref.path
            if key not in loaded:
                loaded[key] = renderer.pixels(image.ref)
            _check_features(image.ref.path, renderer.num_image_tokens(loaded[key][1]), image.num_tokens)
            types[row, image.offset : image.offset + image.num_tokens] = 1
            shown.append(key)
    if not shown:
        return {}
    distinct = list(loaded)
    batch = {
        "pixel_values": _joined([loaded[key][0] for key in (distinct if once else shown)]),
        "image_grid_thw": torch.stack([loaded[key][1] for key in shown]),
    }
    return batch | ({IMAGE_INDEX: torch.tensor([distinct.index(key) for key in shown])} if once else {})


def _videos(
    items: Sequence[TokensWithImages], renderer: Renderer, types: np.ndarray, once: bool
) -> dict[str, torch.Tensor]:
    """Load the videos of a batch, and write 2 into `types` [B, L] at their placeholders."""
    loaded: dict[VideoRef, Pixels] = {}
    shown: list[VideoRef] = []
    for row, item in enumerate(items):
        for video in item.videos:
            if video.ref not in loaded:
                loaded[video.ref] = renderer.media.load_video(video.ref)
            found = loaded[video.ref]
            _check_features(video.ref.paths[0], renderer.num_image_tokens(found.grid_thw), video.num_tokens)
            for offset, number in video.runs:
                types[row, offset : offset + number] = 2
            shown.append(video.ref)
    if not shown:
        return {}
    pixels, distinct = [loaded[ref] for ref in shown], list(loaded)
    made = {
        "pixel_values_videos": _joined(
            [renderer.media.patches(found) for found in (loaded.values() if once else pixels)]
        ),
        "video_grid_thw": torch.stack([found.grid_thw for found in pixels]),
    }
    if once:
        made[VIDEO_INDEX] = torch.tensor([distinct.index(ref) for ref in shown])
    if renderer.family in TOLD_SECONDS:  # in float64, as engines compute positions from them
        seconds = [found.seconds_per_grid for found in pixels]
        made["second_per_grid_ts"] = torch.tensor(seconds, dtype=torch.float64)
    return made


def _joined(patches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put the patches of images or videos one after another; those of a single one are not copied."""
    return patches[0] if len(patches) == 1 else torch.cat(list(patches))


def _check_features(path: str, features: int, placeholders: int) -> None:
    """Refuse an image or video whose number of features is not that of its placeholders."""
    if features != placeholders:
        raise CollationError(
            f"{path} has {features} features but {placeholders} placeholder tokens; the ids were rendered"
            " with another resolution (compare min_pixels, max_pixels and the video settings)"
        )


#: A model's `get_rope_index`: from a padded batch to positions [3, B, L] and their offsets [B, 1].
RopeIndex = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def collate_packed(
    items: Sequence[TokensWithImages],
    renderer: Renderer,
    rope_index: RopeIndex | None,
    *,
    images_once: bool = False,
) -> dict[str, torch.Tensor]:
    """Put samples into one row without padding; each has the positions that it would have alone.

    Args:
        items: The row's samples, in order.
        renderer: The renderer of the checkpoint that the ids were made for.
        rope_index: `get_rope_index` of the model's backbone; None for a text model.
        images_once: See `collate`.

    Returns:
        Arguments of the model by name, without an attention mask: `input_ids` [1, T], `position_ids`
        [4, 1, T], and the pixels as `collate` returns them. The first of the four positions is the place
        within the sample, by which attention functions know that a sample begins where it is 0; the others
        are time, height and width. A text model's `position_ids` are the first alone, [1, T].

    Raises:
        CollationError: If a sequence's placeholders are not exactly those of its images and videos.
        ImageChangedError: If an image or a video file has changed since it was rendered.
        VideoError: If a video breaks off before its last frame.
    """
    batch = collate(items, renderer, images_once=images_once)
    mask = batch.pop("attention_mask").bool()
    places = torch.arange(mask.shape[1]).expand(1, *mask.shape)
    if rope_index is None:
        return {"input_ids": batch["input_ids"][mask][None], "position_ids": places[:, mask]}
    types = batch.pop("mm_token_type_ids")
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    grids = {name: batch[name] for name in names if name in batch}
    axes, _ = rope_index(batch["input_ids"], mm_token_type_ids=types, attention_mask=mask.long(), **grids)
    batch["position_ids"] = torch.cat([places, axes])[:, mask][:, None]
    batch["input_ids"] = batch["input_ids"][mask][None]
    return batch


def pad_rows(rows: Sequence[Sequence[float]], fill: float, dtype: DTypeLike) -> torch.Tensor:
    """Put rows of different lengths into one tensor, padded on the right.

    Args:
        rows: B rows of numbers.
        fill: The number to pad with.
        dtype: A numpy type, such as `np.int64`, `np.float32` or `bool`.

    Returns:
        [B, length of the longest row].
    """
    padded = np.full((len(rows), max(map(len, rows), default=0)), fill, dtype=dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)
