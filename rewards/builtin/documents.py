"""Has the model read the whole page: its text, where each part stands, and in which order?"""

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from scipy.optimize import linear_sum_assignment

from posttrain.types import FAMILY_FRAMES, Box, Family, Frame, RewardInput, Score
from rewards.builtin.grounding import iou_and_giou
from rewards.reading.documents import PageBlock, page_text, parse_page, read_bbox, reading_order
from rewards.reading.regions import in_frame, read_frame
from rewards.reading.text import MAX_LENGTH, transcript
from rewards.sdk import reward

#: Shares of the three parts (assumed); where one does not apply, the others share its weight.
WEIGHTS = {"text": 0.5, "layout": 0.3, "order": 0.2}
#: A page has some dozens.
MAX_BLOCKS = 500


@reward("document_parsing")
def document_parsing(x: RewardInput, family: Family) -> Score | None:
    """Score how well a page was parsed to QwenVL-HTML or -Markdown: text, layout, reading order.

    Formula: Σ w·part / Σ w over the parts that apply, with the weights 0.5, 0.3 and 0.2 (assumed) of
    - text: 1 − lev / max length, over the characters of the whole page without markup, in written order;
    - layout, where the reference has boxes: 2·S / (boxes in the answer + boxes in the reference), with S
      the greatest sum of IoU over one-to-one matchings (Hungarian method). A box that is no box
      (reversed, three numbers) counts and matches nothing, so that floods and repetitions cost;
    - order, where the reference has two blocks with text or more: Kendall's tau from 0
      (`rewards.reading.documents.reading_order`).
    An answer without text scores 0 where the reference has text, whatever its boxes, and so does one of
    more than 100,000 characters or 500 blocks.

    Range: [0, 1]. Source: the formats are those of the Qwen2.5-VL and Qwen3-VL reports, which give no
    formula (assumed); text distance as in OmniDocBench (arXiv 2412.07626).

    Args:
        x: `ground_truth` is the page in QwenVL-HTML or QwenVL-Markdown with boxes in the family's own
            frame, or `{"text": …, "frame": "pixel_original"}`; its format should be the one that the prompt
            asks for. None means that this does not apply. Where the frames differ, sizes come from the
            columns `image_size` and `resized_size` ([width, height]), the former else from the first image.
        family: Whose frame the answer's boxes have, as for `grounding`.

    Raises:
        ValueError: If the ground truth is of another form, empty, too long, or has a box that is none.
    """
    if family not in FAMILY_FRAMES:
        raise ValueError(f"family {family!r} is none of {', '.join(FAMILY_FRAMES)}")
    if x.ground_truth is None:
        return None
    frame = FAMILY_FRAMES[family]
    reference, targets = _reference(x.ground_truth, frame)
    answer = parse_page(transcript(x.answer)) if len(x.answer) <= MAX_LENGTH else []
    ours, theirs = page_text(reference), page_text(answer)
    if len(x.answer) > MAX_LENGTH or len(theirs) > MAX_LENGTH or len(answer) > MAX_BLOCKS:
        return Score(0.0, note=f"more than {MAX_LENGTH:,} characters or {MAX_BLOCKS} blocks")
    if not answer or (ours and not theirs):
        return Score(0.0, note="the answer has no text")
    parts = {"text": Levenshtein.normalized_similarity(ours, theirs)}
    if targets:
        written = [read_bbox(block.bbox, frame) for block in answer if block.bbox is not None]
        parts["layout"] = _layout(in_frame(targets, frame, x), written)
    if sum(bool(block.text) for block in reference) >= 2:
        parts["order"] = reading_order(reference, answer)
    value = sum(WEIGHTS[name] * part for name, part in parts.items()) / sum(map(WEIGHTS.__getitem__, parts))
    return Score(min(1.0, value), parts, f"{len(answer)} blocks, the reference has {len(reference)}")


def _reference(ground_truth: object, own_frame: Frame) -> tuple[list[PageBlock], list[Box]]:
    """Return the blocks of the reference page and their boxes.

    Raises:
        ValueError: As `document_parsing` does.
    """
    form = {"text": ground_truth} if isinstance(ground_truth, str) else ground_truth
    if not isinstance(form, dict) or not isinstance(form.get("text"), str) or form.keys() - {"text", "frame"}:
        raise ValueError(
            f'ground_truth {ground_truth!r:.80} is neither a text nor {{"text": …, "frame": …}}; correct the'
            " dataset"
        )
    frame = read_frame(form.get("frame", own_frame))
    blocks = parse_page(transcript(form["text"]))
    if not blocks or len(blocks) > MAX_BLOCKS or len(form["text"]) > MAX_LENGTH:
        raise ValueError(
            f"ground_truth has {len(blocks)} blocks and {len(form['text']):,} characters; a page has 1 to"
            f" {MAX_BLOCKS} and at most {MAX_LENGTH:,}"
        )
    boxes = []
    for block in blocks:
        if block.bbox is None:
            continue
        box = read_bbox(block.bbox, frame)
        if box is None:
            raise ValueError(
                f"ground_truth: box {block.bbox!r:.80} is not x1, y1, x2, y2 with x1 < x2 and y1 < y2;"
                " correct the dataset"
            )
        boxes.append(box)
    return blocks, boxes


def _layout(targets: Sequence[Box], written: Sequence[Box | None]) -> float:
    """Compute the Dice coefficient of two sets of boxes, with IoU for «is in both»."""
    corners = [
        np.array([(box.x1, box.y1, box.x2, box.y2) for box in boxes if box], dtype=float).reshape(-1, 4)
        for boxes in (targets, written)
    ]
    iou, _ = iou_and_giou(*corners)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return 2 * float(iou[rows, columns].sum()) / (len(targets) + len(written))
