"""`curation.html`: a curation's funnel and examples of what each step dropped, as one page.

Rows come from anywhere and models wrote into them, so they are hostile text on this page: the template
escapes everything, and a content security policy lets the browser run no script and load nothing.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.files.strict_json import JsonError, parse_json
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
        pictures: Its first images.
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
    try:
        funnel = json.loads((directory / "funnel.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(
            f"{directory} holds no finished curation (funnel.json: {error}). Give the directory that"
            " `posttrain data curate` printed"
        ) from error
    book = PictureBook(directory)
    bars = [_bar(step, funnel["read"]) for step in funnel["steps"]]
    _add_examples(bars, directory / "dropped.jsonl", book)
    html = page(
        "curation.html.jinja",
        name=visible(str(funnel["name"])),
        funnel=funnel,
        share=percent(funnel["kept"] / funnel["read"]) if funnel["read"] else "0 %",
        bars=bars,
        width=WIDTH,
        kept=[_example(row, book) for row in islice(_rows(directory / "kept.jsonl"), KEPT)],
    )
    return write_page(directory / "curation.html", html)


def _bar(step: Mapping[str, Any], read: int) -> Bar:
    scale = WIDTH / read if read else 0.0
    kept_width = step["kept"] * scale
    segments: list[Segment] = []
    x = kept_width
    ranked = Counter(step["reasons"]).most_common()
    rest = sum(count for _, count in ranked[MOST_REASONS:])
    for index, (reason, count) in enumerate(
        ranked[:MOST_REASONS] + ([("other reasons", rest)] if rest else [])
    ):
        segments.append(Segment(visible(reason), count, round(x, 2), round(count * scale, 2), index + 1))
        x += count * scale
    figures = {key: step[key] for key in ("entered", "kept", "dropped", "failed", "changed")}
    return Bar(
        visible(step["name"]), step["filter"], **figures, kept_width=round(kept_width, 2), segments=segments
    )


def _add_examples(bars: list[Bar], path: Path, book: PictureBook) -> None:
    """Give each step its first dropped rows, a few of each reason."""
    by_name = {bar.name: bar for bar in bars}
    seen: Counter[tuple[str, str]] = Counter()
    wanted = sum(min(PER_STEP, bar.dropped) for bar in bars)
    for row in _rows(path):
        verdict = row.get("dropped")
        if not wanted:
            return
        if not isinstance(verdict, dict):
            continue
        step, reason = str(verdict.get("step")), str(verdict.get("reason"))
        bar = by_name.get(step)
        if bar is None or len(bar.examples) >= PER_STEP or seen[step, reason] >= PER_REASON:
            continue
        seen[step, reason] += 1
        wanted -= 1
        bar.examples.append(_example(row, book))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that can be read."""
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


def _example(row: dict[str, Any], book: PictureBook) -> Example:
    verdict = row.get("dropped") or {}
    messages = [message for message in row.get("messages", []) if isinstance(message, dict)]
    images = [
        block["image"]
        for message in messages
        for block in _blocks(message)
        if isinstance(block.get("image"), str)
    ]
    gold = row.get("ground_truth")
    return Example(
        name=_text(row.get("id")),
        reason=_text(verdict.get("reason", "")),
        note=_text(verdict.get("note", "")),
        scores=[
            (visible(step), [(visible(name), short(value)) for name, value in figures.items()])
            for step, figures in verdict.get("scores", {}).items()
        ],
        turns=[(_text(message.get("role")), _shown(message)) for message in messages],
        gold="" if gold is None else _text(gold if isinstance(gold, str) else json.dumps(gold)),
        pictures=[book.picture(path) for path in images[:MOST_PICTURES]],
    )


def _blocks(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content or [] if isinstance(block, dict)]


def _shown(message: Mapping[str, Any]) -> str:
    """A message as text, `[image]` where one stands."""
    pieces = (str(block.get("text", f"[{block.get('type')}]")) for block in _blocks(message))
    return _text("".join(pieces))


def _text(value: Any) -> str:
    return visible(shortened(str(value), MAX_TEXT))
