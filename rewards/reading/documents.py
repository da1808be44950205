"""A parsed page: its blocks in reading order, out of QwenVL-HTML and QwenVL-Markdown."""

import html
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from scipy.optimize import linear_sum_assignment

from posttrain.types import Box, Frame
from rewards.reading.tables import latex_spans, latex_table
from rewards.reading.text import clean, safe_html

#: Two texts less alike than this are not the same block.
SAME_BLOCK = 0.5
#: Blocks are told apart by this many characters.
_COMPARED = 200

_HTML = re.compile(r"data-bbox|\A\s*<(?:!doctype|html|body|div|table|ul|ol|p|h[1-6])\b", re.IGNORECASE)
_LINE_TAGS = frozenset(("br", "hr", "img", "input", "wbr", "col"))
_LISTS = frozenset(("ol", "ul"))
_BLOCK_TAGS = frozenset(
    "html head body div section article header footer main figure figcaption p h1 h2 h3 h4 h5 h6 pre"
    " blockquote ol ul li dl dt dd table caption thead tbody tfoot tr td th".split()
)
#: Elements that end where the next block begins, if nobody closed them.
_SELF_ENDING = frozenset(("p", "li", "h1", "h2", "h3", "h4", "h5", "h6"))

_PLACE = re.compile(r"<!--\s{0,9}(Image|Table)\s{0,9}\(([^()<>]{0,80})\)\s{0,9}-->", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]{1,1000}>")
_PICTURE = re.compile(r"!\[([^\[\]]{0,200})\]\([^()]{0,500}\)")
_LIST_ITEM = re.compile(r"(?:[-*+]|\d{1,3}[.)])\s")
_MARKER = re.compile(r"(?:#{1,6}\s|>\s?|[-*+]\s)")
_TABLE_FLOAT = re.compile(r"\\(?:begin|end)\{table\*?\}(?:\[[^\[\]]{0,9}\])?|\\centering")
_NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?")


@dataclass(frozen=True)
class PageBlock:
    """One paragraph, heading, list item, table or picture.

    Attributes:
        text: Its text, cleaned; a table's cells in order; "" for a picture.
        bbox: Its box as written, which may be no box at all, or None where none is written.
    """

    text: str
    bbox: str | None = None


def parse_page(text: str) -> list[PageBlock]:
    """Read the blocks of a page, in the order in which they are written.

    QwenVL-HTML: each outermost element with `data-bbox` is a block, but of a list its items where they
    have boxes of their own. Text outside of such elements makes blocks without a box. QwenVL-Markdown:
    headings, paragraphs, list items and tables are blocks; `<!-- Image (x1, y1, x2, y2) -->` is a picture,
    and `<!-- Table (x1, y1, x2, y2) -->` the box of the table that follows, in LaTeX or Markdown.

    Source: Qwen2.5-VL report (QwenVL HTML) and Qwen3-VL's cookbook on document parsing (QwenVL Markdown).
    """
    blocks = _html_blocks(text) if _HTML.search(text) else _markdown_blocks(text)
    return [block for block in blocks if block.text or block.bbox is not None]


def read_bbox(bbox: str, frame: Frame) -> Box | None:
    """Read the box in a text of four numbers, between commas or spaces; None where it is no box."""
    numbers = bbox.replace(",", " ").split()
    if len(numbers) != 4 or not all(map(_NUMBER.fullmatch, numbers)):
        return None
    x1, y1, x2, y2 = map(float, numbers)
    return Box(x1, y1, x2, y2, frame) if x1 < x2 and y1 < y2 else None


def page_text(blocks: Sequence[PageBlock]) -> str:
    """Return the text of a page in reading order, on one line."""
    return " ".join(block.text for block in blocks if block.text)


def reading_order(reference: Sequence[PageBlock], answer: Sequence[PageBlock]) -> float:
    """Measure how far the reference's blocks that are in the answer come in the right order.

    Formula: max(0, (C − D) / (n (n − 1) / 2)), which is Kendall's tau: of all pairs of the n reference
    blocks with text, C are found in the answer in the right order and D the wrong way round; pairs with a
    missing block count as neither. Blocks are matched one to one by the normalised edit distance of their
    first 200 characters (Hungarian method), and only where that is at most 0.5.

    Range: [0, 1]; 1 where the reference has fewer than two such blocks. Source: (assumed).
    """
    ours = [block.text[:_COMPARED] for block in reference if block.text]
    theirs = [block.text[:_COMPARED] for block in answer if block.text]
    if len(ours) < 2:
        return 1.0
    if not theirs:
        return 0.0
    alike = process.cdist(ours, theirs, scorer=Levenshtein.normalized_similarity, dtype=np.float64)
    # Of equal texts, the ones at the same place in the page belong together.
    places = np.linspace(0, 1, len(ours))[:, None] - np.linspace(0, 1, len(theirs))[None, :]
    rows, columns = linear_sum_assignment(alike - 1e-6 * np.abs(places), maximize=True)
    found = columns[alike[rows, columns] >= SAME_BLOCK]
    signs = np.sign(found[None, :] - found[:, None])
    return max(0.0, float(np.triu(signs, k=1).sum()) / math.comb(len(ours), 2))


@dataclass
class _OpenBlock:
    """A block that is still being read."""

    is_list: bool = False
    bbox: str | None = None
    text: list[str] = field(default_factory=list)
    has_items: bool = False


def _html_blocks(text: str) -> list[PageBlock]:
    reader = _PageReader()
    reader.feed(safe_html(text))
    reader.close()
    read = [(block, clean("".join(block.text))) for block in reader.blocks]
    return [PageBlock(text, block.bbox) for block, text in read if text or not block.has_items]


class _PageReader(HTMLParser):
    """Collects the blocks of QwenVL-HTML; unclosed and misnested elements are taken as they come."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.blocks: list[_OpenBlock] = []
        self._elements: list[tuple[str, _OpenBlock | None]] = []
        self._open_tags: Counter[str] = Counter()
        self._around: list[_OpenBlock] = []
        self._loose: _OpenBlock | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCK_TAGS:
            self._break()
            if self._elements and self._elements[-1][0] in _SELF_ENDING and tag in _SELF_ENDING:
                self._pop()
        block = self._boxed(tag, dict(attrs))
        if tag in _LINE_TAGS:
            self._space()
            return
        self._elements.append((tag, block))
        self._open_tags[tag] += 1
        if block:
            self._around.append(block)

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCK_TAGS:
            self._break()
        while self._open_tags[tag] and self._pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._around:
            self._around[-1].text.append(data)
        elif self._loose:
            self._loose.text.append(data)
        elif data.strip():
            self._loose = _OpenBlock(text=[data])
            self.blocks.append(self._loose)

    def _boxed(self, tag: str, attrs: dict[str, str | None]) -> _OpenBlock | None:
        """Begin a block for an element with a box, unless it lies within one that is no list."""
        within = self._around[-1] if self._around else None
        if "data-bbox" not in attrs or (within and not within.is_list):
            return None
        if within:
            within.has_items = True
        block = _OpenBlock(tag in _LISTS, attrs["data-bbox"] or "")
        self.blocks.append(block)
        self._loose = None
        return block

    def _break(self) -> None:
        """End a line; text outside of any box begins a new block."""
        self._space()
        self._loose = None

    def _space(self) -> None:
        if self._around or self._loose:
            self.handle_data(" ")

    def _pop(self) -> str:
        tag, block = self._elements.pop()
        self._open_tags[tag] -= 1
        if block:
            self._around.pop()
        return tag


def _markdown_blocks(text: str) -> list[PageBlock]:
    blocks: list[PageBlock] = []
    position, bbox = 0, None
    for start, end in latex_spans(text):
        bbox = _read_prose(text[position:start], blocks)
        cells = (cell.text for row in latex_table(text[start:end]) for cell in row)
        blocks.append(PageBlock(clean(" ".join(cells)), bbox))
        position = end
    bbox = _read_prose(text[position:], blocks)
    return blocks if bbox is None else [*blocks, PageBlock("", bbox)]


def _read_prose(text: str, blocks: list[PageBlock]) -> str | None:
    """Add the blocks of Markdown without LaTeX tables; return the box of a table still to come."""
    first, *places = _PLACE.split(text)
    blocks.extend(map(PageBlock, _paragraphs(first)))
    waiting = None
    for kind, bbox, after in zip(places[::3], places[1::3], places[2::3], strict=True):
        if waiting is not None:
            blocks.append(PageBlock("", waiting))
        waiting = bbox
        if kind.casefold() == "image":
            blocks.append(PageBlock("", bbox))
            waiting = None
        for paragraph in _paragraphs(after):
            blocks.append(PageBlock(paragraph, waiting))
            waiting = None
    return waiting


def _paragraphs(text: str) -> list[str]:
    """Return paragraphs, headings and list items without their markup."""
    paragraphs: list[list[str]] = [[]]
    for line in _TABLE_FLOAT.sub("", text).splitlines():
        line = line.strip()
        if not line or line.startswith("#") or _LIST_ITEM.match(line):
            paragraphs.append([])
        paragraphs[-1].append(_plain_line(line))
        if line.startswith("#"):
            paragraphs.append([])
    joined = (clean(" ".join(lines)) for lines in paragraphs)
    return [paragraph for paragraph in joined if paragraph]


def _plain_line(line: str) -> str:
    """Return a line of Markdown without its marks, tags and bars; "" for a fence or a line of dashes."""
    if line.startswith("```") or not line.strip("|-: "):
        return ""
    line = (
        _PICTURE.sub(r"\1", _MARKER.sub("", line, count=1))
        if _MARKER.match(line)
        else _PICTURE.sub(r"\1", line)
    )
    line = html.unescape(_TAG.sub(" ", line))
    return line.replace("**", "").replace("`", "").replace("|", " ")
