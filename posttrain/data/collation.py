"""Token lists and image references to the padded tensors of one forward pass."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from posttrain.data.rendering import Renderer
from posttrain.types import TrajectoryImage


class CollationError(ValueError):
    """Placeholder tokens and images that do not belong together; training on them would be silently wrong."""


class TokensWithImages(Protocol):
    """What a batch is made of: a `Rendered` dialogue or a `Trajectory`."""

    token_ids: list[int]
    images: list[TrajectoryImage]


def collate(
    items: Sequence[TokensWithImages], renderer: Renderer, device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """Right-pad a batch and gather its pixels.

    Args:
        items: B sequences.
        renderer: Of the checkpoint that the ids were rendered for.
        device: Where the tensors go.

    Returns:
        `input_ids`, `attention_mask` and `mm_token_type_ids` (1 on image placeholders; M-RoPE needs it),
        each [B, L]; where there are images, `pixel_values` [patches of all images, values a patch] and
        `image_grid_thw` [images, 3] as well. The keys are the model's own arguments.

    Raises:
        CollationError: If a sequence's placeholders are not exactly those of its images.
        ImageChangedError: If an image file has changed since it was rendered.
    """
    input_ids = pad_rows([item.token_ids for item in items], renderer.pad_token_id, np.int64)
    lengths = torch.tensor([len(item.token_ids) for item in items])
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    image_mask = np.zeros(input_ids.shape, dtype=bool)
    pixels = []
    for row, item in enumerate(items):
        for image in item.images:
            values, grid_thw = renderer.pixels(image.ref)
            features = renderer.num_image_tokens(grid_thw)
            if features != image.num_tokens:
                raise CollationError(
                    f"{image.ref.path} has {features} features but {image.num_tokens} placeholder tokens; the"
                    " ids were rendered with another resolution (compare min_pixels and max_pixels)"
                )
            image_mask[row, image.offset : image.offset + features] = True
            pixels.append((values, grid_thw))
    mm_token_type_ids = torch.from_numpy(image_mask)
    wrong = ((input_ids == renderer.image_token_id) != mm_token_type_ids).any(dim=1)
    if wrong.any():
        raise CollationError(
            f"sequences {wrong.nonzero().flatten().tolist()} of the batch have image placeholders where no"
            " image belongs, or none where one does; look for cut sequences and sampled placeholder tokens"
        )
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "mm_token_type_ids": mm_token_type_ids.int(),
    }
    if pixels:
        batch["pixel_values"] = torch.cat([values for values, _ in pixels])
        batch["image_grid_thw"] = torch.stack([grid_thw for _, grid_thw in pixels])
    return {name: tensor.to(device) for name, tensor in batch.items()}


#: A model's own M-RoPE: of a padded batch, the positions [3, B, L] and their offsets.
RopeIndex = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def collate_packed(
    items: Sequence[TokensWithImages],
    renderer: Renderer,
    rope_index: RopeIndex,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Put samples into one row without padding; each has the positions it has alone.

    Args:
        items: The row's samples, in order.
        renderer: Of the checkpoint that the ids were rendered for.
        rope_index: `get_rope_index` of the model's backbone.
        device: Where the tensors go.

    Returns:
        `input_ids` [1, T]; `position_ids` [4, 1, T], of which the first is the place within the sample (where
        it is 0 a sample begins: attention functions read that) and the others are time, height and width;
        and the pixels as `collate` gives them. There is no attention mask.

    Raises:
        CollationError: As `collate`.
        ImageChangedError: As `collate`.
    """
    batch = collate(items, renderer)
    mask = batch.pop("attention_mask").bool()
    types = batch.pop("mm_token_type_ids")
    grids = {name: batch[name] for name in ("image_grid_thw", "video_grid_thw") if name in batch}
    axes, _ = rope_index(batch["input_ids"], mm_token_type_ids=types, attention_mask=mask.long(), **grids)
    places = torch.arange(mask.shape[1]).expand(1, *mask.shape)
    batch["position_ids"] = torch.cat([places, axes])[:, mask][:, None]
    batch["input_ids"] = batch["input_ids"][mask][None]
    return {name: tensor.to(device) for name, tensor in batch.items()}


def pad_rows(rows: Sequence[Sequence[Any]], fill: float, dtype: Any) -> torch.Tensor:
    """Rows of different lengths as one tensor, padded on the right.

    Args:
        rows: B rows of numbers.
        fill: What to pad with.
        dtype: A numpy type, such as `np.int64`, `np.float32` or `bool`.

    Returns:
        [B, longest row].
    """
    padded = np.full((len(rows), max(map(len, rows), default=0)), fill, dtype=dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)
