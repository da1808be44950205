"""`curation.html`: a curation's funnel and examples of what each step dropped, as one page.

Rows come from anywhere and models wrote into them, so they are hostile text on this page: the template
escapes everything, and a content security policy lets the browser run no script and load nothing.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from posttrain.files.strict_json import Json, JsonError, JsonObject, parse_json
from posttrain.media.videos import video_info
from posttrain.messages import message_from_json
from posttrain.run.json_fields import integer, mapping, numbers, objects, text
from posttrain.viewer.charts import short
from posttrain.viewer.page import page, write_page
from posttrain.viewer.pictures import Picture, PictureBook
from posttrain.viewer.report import ReportError
from posttrain.viewer.wording import percent, shortened, visible

#: Examples of each reason of a step, of each step, and of what was kept.
PER_REASON, PER_STEP, KEPT = 2, 6, 6
#: Longest text of an example.
MAX_TEXT = 1_200
MOST_PICTURES = 2
#: Reasons of a step with a colour of their own; the rest share one.
MOST_REASONS = 4
#: Width of a bar, in the user units of its drawing.
WIDTH = 1000
#: Numbers of rows that funnel.json gives for each step.
COUNTS = ("entered", "kept", "dropped", "failed", "changed")


@dataclass
class Segment:
    """A piece of a bar: a reason, where it begins and how wide it is.

    Attributes:
        text: The reason, or what it stands for.
        count: Rows.
        x, width: In the drawing's units.
        colour: Index into the page's palette.
    """

    text: str
    count: int
    x: float
    width: float
    colour: int


@dataclass
class Bar:
    """One step of the funnel.

    Attributes:
        name, filter: The step's.
        entered, kept, dropped, failed, changed: Rows.
        kept_width: Width of the kept rows, in the drawing's units.
        segments: What was dropped, by reason, right of the kept rows.
        examples: Some of the dropped rows.
    """

    name: str
    filter: str
    entered: int
    kept: int
    dropped: int
    failed: int
    changed: int
    kept_width: float
    segments: list[Segment]
    examples: list["Example"] = field(default_factory=list)


@dataclass
class Example:
    """One row.

    Attributes:
        name: Its id.
        reason, note: Why it was dropped; empty for one that was kept.
        scores: (step, figures) of the steps that gave any.
        turns: (role, text).
        gold: Its ground truth.
        pictures: Its first images, of videos their first frames.
    """

    name: str
    reason: str
    note: str
    scores: list[tuple[str, list[tuple[str, str]]]]
    turns: list[tuple[str, str]]
    gold: str
    pictures: list[Picture]


def write_curation_page(directory: Path) -> Path:
    """Write `<directory>/curation.html` of a finished curation, replacing an earlier one.

    Returns:
        The page's path.

    Raises:
        ReportError: If the directory holds no finished curation.
        DiskFull: If there is no space; an earlier page is intact.

    Example:
        write_curation_page(Path("curated/cold-start"))
    """
    funnel = _funnel(directory)
    read, kept = funnel.get("read"), funnel.get("kept")
    book = PictureBook(directory)
    bars = [_bar(step, integer(read) or 0) for step in objects(funnel.get("steps"))]
    _add_examples(bars, directory / "dropped.jsonl", book)
    html = page(
        "curation.html.jinja",
        name=visible(text(funnel.get("name"))),
        funnel=funnel,
        share=percent((integer(kept) or 0) / (integer(read) or 1)),
        bars=bars,
        width=WIDTH,
        kept=[_example(row, book) for row in islice(_rows(directory / "kept.jsonl"), KEPT)],
    )
    return write_page(directory / "curation.html", html)


def _funnel(directory: Path) -> JsonObject:
    try:
        funnel = json.loads((directory / "funnel.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(
            f"{directory} holds no finished curation (funnel.json: {error}). Give the directory that"
            " `posttrain data curate` printed"
        ) from error
    return mapping(funnel)


def _bar(step: JsonObject, read: int) -> Bar:
    counts = {key: integer(step.get(key)) or 0 for key in COUNTS}
    scale = WIDTH / read if read else 0.0
    kept_width = counts["kept"] * scale
    reasons = Counter({reason: int(count) for reason, count in numbers(step.get("reasons")).items()})
    ranked = reasons.most_common()
    rest = sum(count for _, count in ranked[MOST_REASONS:])
    segments: list[Segment] = []
    x = kept_width
    for index, (reason, count) in enumerate(
        ranked[:MOST_REASONS] + ([("other reasons", rest)] if rest else []), start=1
    ):
        segments.append(Segment(visible(reason), count, round(x, 2), round(count * scale, 2), index))
        x += count * scale
    return Bar(
        name=visible(text(step.get("name"))),
        filter=text(step.get("filter")),
        entered=counts["entered"],
        kept=counts["kept"],
        dropped=counts["dropped"],
        failed=counts["failed"],
        changed=counts["changed"],
        kept_width=round(kept_width, 2),
        segments=segments,
    )


def _add_examples(bars: list[Bar], path: Path, book: PictureBook) -> None:
    """Give each step its first dropped rows, a few of each reason."""
    by_name = {bar.name: bar for bar in bars}
    seen: Counter[tuple[str, str]] = Counter()
    wanted = sum(min(PER_STEP, bar.dropped) for bar in bars)
    for row in _rows(path):
        if not wanted:
            return
        verdict = mapping(row.get("dropped"))
        step, reason = text(verdict.get("step")), text(verdict.get("reason"))
        bar = by_name.get(step)
        if bar is None or len(bar.examples) >= PER_STEP or seen[step, reason] >= PER_REASON:
            continue
        seen[step, reason] += 1
        wanted -= 1
        bar.examples.append(_example(row, book))


def _rows(path: Path) -> Iterator[JsonObject]:
    """Yield the rows of a file that can be read."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = parse_json(line)
            except JsonError:
                continue
            if isinstance(row, dict):
                yield row


def _example(row: JsonObject, book: PictureBook) -> Example:
    verdict = mapping(row.get("dropped"))
    messages = objects(row.get("messages"))
    gold = row.get("ground_truth")
    return Example(
        name=_shown(row.get("id")),
        reason=_shown(verdict.get("reason")),
        note=_shown(verdict.get("note")),
        scores=[
            (visible(step), [(visible(name), short(value)) for name, value in numbers(figures).items()])
            for step, figures in mapping(verdict.get("scores")).items()
        ],
        turns=[(_shown(message.get("role")), _said(message)) for message in messages],
        gold=_shown(gold if gold is None or isinstance(gold, str) else json.dumps(gold)),
        pictures=list(islice(_pictures(messages, book), MOST_PICTURES)),
    )


def _pictures(messages: list[JsonObject], book: PictureBook) -> Iterator[Picture]:
    """Embed a row's images, and of each video the first frame that is shown."""
    for block in (block for message in messages for block in _blocks(message)):
        if isinstance(image := block.get("image"), str):
            yield book.picture(image)
        elif block.get("video") is not None:
            try:
                (video,) = message_from_json({"role": "user", "content": [block]}).videos
                yield from book.frames(video, video_info(video).frames[:1])
            except ValueError as error:
                yield Picture("", problem=str(error))


def _blocks(message: JsonObject) -> list[JsonObject]:
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else objects(content)


def _said(message: JsonObject) -> str:
    """Return a message as text, `[image]` where one stands."""
    return _shown("".join(str(block.get("text", f"[{block.get('type')}]")) for block in _blocks(message)))


def _shown(value: Json) -> str:
    return visible(shortened(text(value), MAX_TEXT))
