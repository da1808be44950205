"""A dataset as one page: how long its samples are, and some of them token by token.

Rows come from anywhere, so they are hostile text on this page: the template escapes everything, and a content
security policy lets the browser run no script and load nothing.
"""

from pathlib import Path

from posttrain.rendering.inspection import Inspection, Token
from posttrain.rendering.video_frames import VideoPlan
from posttrain.types import VideoRef
from posttrain.viewer.charts import HEIGHT, WIDTH
from posttrain.viewer.page import page, write_page
from posttrain.viewer.pictures import Picture, PictureBook

BINS = 24
#: Tokens of one sample that are shown, from its beginning and from its end.
MAX_TOKENS = 3_000
MAX_BROKEN = 50
#: Frames of a video that are shown, evenly over those that the model sees.
MAX_FRAMES = 12


def write_dataset_page(inspection: Inspection, path: Path) -> Path:
    """Write the page, replacing an earlier one.

    Returns:
        The page's path.

    Raises:
        DiskFull: If there is no space; an earlier page is intact.
    """
    book = PictureBook(Path())
    html = page(
        "dataset.html.jinja",
        found=inspection,
        bars=histogram(inspection.lengths),
        chart_size=(WIDTH, HEIGHT),
        broken=[(row.place, row.reason) for row in inspection.broken[:MAX_BROKEN]],
        cards=[
            (
                card,
                [(view, *_shortened(view.tokens)) for view in card.views],
                [book.picture(image) for image in card.images],
                [(plan, _strip(ref, plan, book)) for ref, plan in card.videos],
            )
            for card in inspection.shown
        ],
    )
    return write_page(path, html)


def histogram(lengths: list[int], bins: int = BINS) -> list[tuple[int, int, int]]:
    """Return (first, last, count) of equal spans of whole numbers from the least to the greatest length.

    Example:
        histogram([1, 2, 2, 4], bins=2) == [(1, 2, 3), (3, 4, 1)]
    """
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    size = -(-(high - low + 1) // bins)
    starts = range(low, high + 1, size)
    counts = [0] * len(starts)
    for length in lengths:
        counts[(length - low) // size] += 1
    return [(start, start + size - 1, count) for start, count in zip(starts, counts, strict=True)]


def _strip(ref: VideoRef, plan: VideoPlan, book: PictureBook) -> list[tuple[float, Picture]]:
    """Return some frames of a video, each with its time in seconds."""
    shown = sorted({index * len(plan.numbers) // MAX_FRAMES for index in range(MAX_FRAMES)})
    pictures = book.frames(ref, [plan.numbers[index] for index in shown])
    return [(plan.timestamps[index], picture) for index, picture in zip(shown, pictures, strict=True)]


def _shortened(tokens: list[Token]) -> tuple[list[Token], int, list[Token]]:
    """Return the first tokens, how many were left out, and the last ones."""
    if len(tokens) <= MAX_TOKENS:
        return tokens, 0, []
    half = MAX_TOKENS // 2
    return tokens[:half], len(tokens) - 2 * half, tokens[-half:]
