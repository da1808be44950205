"""Is the object outlined? The overlap of the answer's mask with the reference's."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from posttrain.messages import without_thinking
from posttrain.types import FAMILY_FRAMES, Box, Family, Frame, RewardInput, Score
from rewards.reading.masks import (
    Grid,
    Mask,
    MaskError,
    Points,
    answered_mask,
    draw,
    read_mask,
    scaled,
    within,
)
from rewards.reading.regions import in_frame, read_frame
from rewards.sdk import reward

#: Cells along the longer side of the grid on which polygons are compared.
CELLS = 2000
#: The longer side of a picture of unknown size.
UNKNOWN_SIDE = 4096


@reward("mask_iou", written=lambda _: None)
def mask_iou(x: RewardInput, family: Family) -> Score | None:
    """Score how well the outline that the answer draws fits the object's mask.

    Formula: |A ∩ G| / |A ∪ G| in pixels, A and G each the union of all its polygons or run lengths. Where the
    reference has polygons they are drawn on a grid of 2,000 cells along the picture's longer side (a cell
    counts if its centre is inside, by the even-odd rule); where it has run lengths, on its own pixels. An
    answer with a corner outside of the picture, more than 200 polygons or 5,000 corners scores 0. Where the
    reference is empty, 1 for an answer in words without a mask.

    Range: [0, 1]. Source: mask IoU of COCO (`cocoapi/common/maskApi.c`); of several masks together the
    overall IoU of referring segmentation (gIoU and cIoU of LISA, arXiv 2308.00692, average it).

    Args:
        x: `ground_truth` is COCO's run lengths `{"size": [height, width], "counts": [0, 12, …]}` or
            `"counts": "…"` over the whole picture, a polygon `[[x, y], …]`, a list of polygons, each of that
            form or `[x1, y1, x2, y2, …]`, or an object with one of these as `polygons` or `segmentation` and
            perhaps a `frame`, else the family's holds. Sizes as for `grounding`; give `resized_size` where
            the family writes pixels, for a grid that fits. None means that this does not apply.
        family: In whose frame the answer's corners are. Run lengths in an answer count where the reference
            has some of the same size.

    Raises:
        ValueError: If the ground truth or a size is not as above.
    """
    if family not in FAMILY_FRAMES:
        raise ValueError(f"family {family!r} is none of {', '.join(FAMILY_FRAMES)}")
    if x.ground_truth is None:
        return None
    frame = FAMILY_FRAMES[family]
    gold, gold_frame = _gold(x.ground_truth, frame)
    mask = answered_mask(x.answer)
    if gold.empty:
        return Score(float(bool(without_thinking(x.answer)) and (mask is None or mask.empty)))
    if mask is None:
        return Score(0.0, note="no mask in the answer")
    try:
        pair = _on_runs(gold, mask, x, frame) if gold.grids else _on_grid(gold, gold_frame, mask, x, frame)
    except MaskError as error:
        return Score(0.0, note=f"the answer's mask: {error}")
    ours, theirs = pair
    union = int((ours | theirs).sum())
    return Score(int((ours & theirs).sum()) / union if union else 0.0, note=f"{int(ours.sum())} cells")


def _gold(ground_truth: object, frame: Frame) -> tuple[Mask, Frame]:
    """Read the mask of a ground truth, and the frame of its polygons."""
    form = dict(ground_truth) if isinstance(ground_truth, dict) else ground_truth
    if isinstance(form, dict):
        frame = read_frame(form.pop("frame", frame))
    try:
        mask = read_mask(form)
    except MaskError as error:
        raise ValueError(
            f'ground_truth: {error}; give [[x, y], …] or {{"size": [height, width], "counts": […]}}'
        ) from None
    if len({grid.shape for grid in mask.grids}) > 1 or (mask.grids and mask.polygons):
        raise ValueError("ground_truth: give polygons, or run lengths of one size, but not both")
    return mask, frame


def _on_runs(gold: Mask, mask: Mask, x: RewardInput, frame: Frame) -> tuple[Grid, Grid]:
    """Draw both on the pixels of the reference's run lengths, which cover the whole picture."""
    height, width = gold.grids[0].shape
    if any(grid.shape != (height, width) for grid in mask.grids):
        raise MaskError(f"its run lengths are not of the size [{height}, {width}]")
    sized = dataclasses.replace(x, columns={**x.columns, "image_size": [width, height]})
    polygons = _converted(mask.polygons, frame, "pixel_original", sized)
    if not within(polygons, width, height):
        raise MaskError("a corner lies outside of the picture")
    ours = draw(polygons, height, width)
    return np.logical_or.reduce([ours, *mask.grids]), np.logical_or.reduce(gold.grids)


def _on_grid(gold: Mask, gold_frame: Frame, mask: Mask, x: RewardInput, frame: Frame) -> tuple[Grid, Grid]:
    """Draw polygons on a grid over the picture in the family's frame."""
    if mask.grids:
        raise MaskError("it has run lengths, where the reference has polygons")
    theirs = _converted(gold.polygons, gold_frame, frame, x)
    width, height = (1000, 1000) if frame == "norm_1000" else _resized_size(x)
    if not within(theirs, width, height):
        raise ValueError(
            f"ground_truth: a corner lies outside of the picture, {width} by {height} in {frame}"
        )
    if not within(mask.polygons, width, height):
        raise MaskError("a corner lies outside of the picture")
    scale = CELLS / max(width, height)
    rows, columns = (max(1, round(side * scale)) for side in (height, width))
    ours = draw(scaled(mask.polygons, (scale, scale)), rows, columns)
    return ours, draw(scaled(theirs, (scale, scale)), rows, columns)


def _resized_size(x: RewardInput) -> tuple[int, int]:
    """Return the size of the picture that the model saw, or one that holds any."""
    size = x.columns.get("resized_size")
    if size is None:
        return UNKNOWN_SIDE, UNKNOWN_SIDE
    if not (
        isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    ):
        raise ValueError(f"column 'resized_size' is {size!r}; it must be [width, height] in pixels")
    return size[0], size[1]


def _converted(polygons: Sequence[Points], frame: Frame, to: Frame, x: RewardInput) -> list[Points]:
    """Convert polygons to another frame by the sizes of the sample's picture."""
    if frame == to:
        return list(polygons)
    converted = []
    for corners in polygons:
        boxes = in_frame([Box(px, py, px, py, frame=frame) for px, py in corners.tolist()], to, x)
        converted.append(np.array([(box.x1, box.y1) for box in boxes]))
    return converted
