"""A dataset as one page: how long its samples are, and some of them token by token.

Rows come from anywhere, so they are hostile text on this page: the template escapes everything, and a content
security policy lets the browser run no script and load nothing.
"""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from posttrain.data.inspection import Inspection, Token
from posttrain.durable import write_atomic
from posttrain.viewer.charts import HEIGHT, WIDTH, short
from posttrain.viewer.pictures import PictureBook
from posttrain.viewer.report import HERE
from posttrain.viewer.wording import label, shortened, visible

BINS = 24
#: Tokens of one sample that are shown, from its beginning and from its end.
MAX_TOKENS = 3_000
MAX_BROKEN = 50


def write_dataset_page(inspection: Inspection, path: Path) -> Path:
    """Write the page, replacing an earlier one.

    Returns:
        The page's path.

    Raises:
        DiskFull: If there is no space; an earlier page is intact.
    """
    book = PictureBook(Path())
    page = _template().render(
        style=Markup((HERE / "report.css").read_text("utf-8")),  # noqa: S704 (the package's own file)
        found=inspection,
        bars=histogram(inspection.lengths),
        chart_size=(WIDTH, HEIGHT),
        broken=[(row.place, row.reason) for row in inspection.broken[:MAX_BROKEN]],
        cards=[
            (
                card,
                [(view, *_shortened(view.tokens)) for view in card.views],
                [book.picture(image) for image in card.images],
            )
            for card in inspection.shown
        ],
    )
    write_atomic(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def histogram(lengths: list[int], bins: int = BINS) -> list[tuple[int, int, int]]:
    """(first, last, count) of equal spans of whole numbers from the least to the greatest length.

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


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "words": label, "short": short, "shortened": shortened}
    return environment.get_template("dataset.html.jinja")


def _shortened(tokens: list[Token]) -> tuple[list[Token], int, list[Token]]:
    """The first tokens, how many were left out, and the last ones."""
    if len(tokens) <= MAX_TOKENS:
        return tokens, 0, []
    half = MAX_TOKENS // 2
    return tokens[:half], len(tokens) - 2 * half, tokens[-half:]
