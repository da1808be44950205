"""Tables out of HTML, LaTeX and Markdown, and how alike two of them are (TEDS)."""

import itertools
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

from apted import APTED, Config
from rapidfuzz.distance import Levenshtein

from rewards.reading.text import MAX_LENGTH, clean, safe_html

#: Rows and cells of a table; the edit distance of two tables of this size takes some seconds.
MAX_NODES = 400
#: As in HTML, where a cell spans at most 1000 columns.
MAX_SPAN = 1000

#: A `\\multirow` within a `\\multicolumn`, or the other way round.
MAX_NESTING = 2

_HTML_TABLE = re.compile(r"<table[\s>]", re.IGNORECASE)
_HTML_BREAKS = frozenset(("br", "p", "div", "li", "td", "th", "tr"))
_ENVIRONMENT = re.compile(r"\\(begin|end)\{(tabular[*xy]?|longtable|array)\}")
_RULE = re.compile(
    r"\\(?:hline|toprule|midrule|bottomrule|endhead|endfirsthead|endfoot|endlastfoot)(?![A-Za-z])"
    r"|\\(?:cline|cmidrule|hhline)(?:\([a-z]{0,9}\))?\{[^{}]{0,99}\}"
)
_PIECE = re.compile(
    r"\\\\(?:\*|\[[^\[\]\n]{0,20}\])?|\\[A-Za-z]+|\\.|%[^\n]*\n?|[{}&]|[^\\{}&%]+|.", re.DOTALL
)
_INNER_TABLE = re.compile(
    r"\\begin\{tabular\}(?:\[[a-z]\])?\{(?:[^{}]|\{[^{}]{0,20}\}){0,40}\}|\\end\{tabular\}"
)
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|tt|rm|sf|sc|up|md)?|math(?:bf|it|rm|sf)|emph|underline|mbox|makecell|shortstack|thead"
    r"|bf|it|rm|bfseries|itshape|centering|raggedright|raggedleft|tiny|scriptsize|footnotesize|small"
    r"|normalsize|large|Large|displaystyle)(?![A-Za-z])"
)
_SPACE = re.compile(r"\\\\|\\(?:quad|qquad|newline)(?![A-Za-z])|\\[,;:! ]|~")
_ESCAPED = re.compile(r"\\([%&#_${}])|[{}$]")


class TableTooLarge(ValueError):
    """A table of more rows and cells than `MAX_NODES`, or in a text longer than `MAX_LENGTH`."""


@dataclass(frozen=True)
class Cell:
    """One cell: its text, cleaned, and the columns and rows that it spans."""

    text: str
    colspan: int = 1
    rowspan: int = 1


#: Rows of cells; no row is empty.
Table = list[list[Cell]]


def parse_table(text: str) -> Table | None:
    r"""Read the last table of a text; None where there is none with a cell.

    Forms, strongest first: HTML `<table>`, LaTeX `tabular`, `tabularx`, `longtable` or `array`, and
    Markdown with its line of dashes. Header and body cells count alike, and so do rows in and outside of
    `<tbody>`; a table within a cell is that cell's text. Cells that LaTeX leaves empty below a
    `\multirow` are dropped, as HTML has none there.

    Raises:
        TableTooLarge: If it has more than `MAX_NODES` rows and cells, or the text is too long.
    """
    if len(text) > MAX_LENGTH:
        raise TableTooLarge(f"more than {MAX_LENGTH:,} characters")
    if _HTML_TABLE.search(text):
        tables = _html_tables(text)
    elif spans := latex_spans(text):
        tables = [latex_table(text[start:end]) for start, end in spans[-1:]]
    else:
        tables = _markdown_tables(text)
    filled = [rows for table in tables if (rows := [row for row in table if row])]
    if not filled:
        return None
    if _nodes(filled[-1]) > MAX_NODES:
        raise TableTooLarge(f"the table has more than {MAX_NODES} rows and cells")
    return filled[-1]


def teds(reference: Table, answer: Table, structure_only: bool = False) -> float:
    """Compute the tree-edit-distance-based similarity of two tables.

    Formula: max(0, 1 − d(T_r, T_a) / max(|T_r|, |T_a|)), with T the tree table → rows → cells and |T| its
    rows and cells. Adding or removing a node costs 1; changing a cell costs 1 where its spans differ, else
    the normalised edit distance of the texts (0 with `structure_only`).

    Range: [0, 1]. Source: Zhong et al. 2020, PubTabNet (arXiv 1911.10683); apted. Ours (assumed): no nodes
    for `<thead>` and `<tbody>`, which the other two formats lack, and texts without inline tags.
    """
    if structure_only:
        reference, answer = _without_texts(reference), _without_texts(answer)
    size = max(_nodes(reference), _nodes(answer))
    first, second = _without_equal_ends(reference, answer)
    distance = APTED(_tree(first), _tree(second), _Costs()).compute_edit_distance()
    return max(0.0, 1 - float(distance) / size)


def latex_spans(text: str) -> list[tuple[int, int]]:
    r"""Find where each outermost LaTeX table starts and ends; one that is cut off reaches to the end."""
    spans, depth, start = [], 0, 0
    for found in _ENVIRONMENT.finditer(text):
        if found[1] == "begin":
            start = start if depth else found.start()
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                spans.append((start, found.end()))
    return [*spans, (start, len(text))] if depth else spans


def latex_table(text: str) -> Table:
    r"""Read the cells of a text from `\begin{tabular}` to `\end{tabular}`."""
    begin = _ENVIRONMENT.match(text)
    assert begin is not None
    position = begin.end()
    for _ in range(2 if begin[2] in ("tabular*", "tabularx", "tabulary") else 1):
        _, position = _argument(text, position, "[]")
        _, position = _argument(text, position)
    body = re.sub(r"\\end\{" + re.escape(begin[2]) + r"\}\Z", "", text[position:])
    rows: Table = [[]]
    parts: list[str] = []
    braces = environments = 0
    for piece in _PIECE.findall(_RULE.sub("", body)):
        top = braces == 0 and environments == 0
        if top and (piece == "&" or piece.startswith("\\\\") or piece == "\\tabularnewline"):
            rows[-1].append(_latex_cell("".join(parts)))
            parts = []
            if piece != "&":
                rows.append([])
            continue
        braces = max(0, braces + (piece == "{") - (piece == "}"))
        environments = max(0, environments + (piece == "\\begin") - (piece == "\\end"))
        if not piece.startswith("%"):
            parts.append(piece)
    rows[-1].append(_latex_cell("".join(parts)))
    return _uncovered([row for row in rows if row != [Cell("")]])


def _latex_cell(raw: str) -> Cell:
    r"""Read a cell without its `\multicolumn` and `\multirow`, which become spans."""
    spans = {"\\multicolumn": 1, "\\multirow": 1}
    raw = raw.strip()
    for _ in range(MAX_NESTING):
        found = re.match(r"\\multi(?:column|row)(?![A-Za-z])", raw)
        if found is None:
            break
        _, position = _argument(raw, found.end(), "[]")
        count, position = _argument(raw, position)
        _, position = _argument(raw, position)
        _, position = _argument(raw, position, "[]")
        content, _ = _argument(raw, position)
        spans[found[0]] = _span(count)
        raw = content.strip()
    return Cell(_latex_text(raw), spans["\\multicolumn"], spans["\\multirow"])


def _latex_text(raw: str) -> str:
    """Return the text of a cell without commands that only change its look."""
    raw = _STYLE.sub("", _SPACE.sub(" ", _INNER_TABLE.sub(" ", raw)))
    return clean(_ESCAPED.sub(lambda found: found[1] or "", raw))


def _argument(text: str, position: int, brackets: str = "{}") -> tuple[str, int]:
    """Return the bracketed text at a position and where it ends; "" where no bracket opens or closes."""
    while text[position : position + 1].isspace():
        position += 1
    if text[position : position + 1] != brackets[0]:
        return "", position
    depth = 0
    for index in range(position, len(text)):
        depth += (text[index] == brackets[0]) - (text[index] == brackets[1])
        if depth == 0:
            return text[position + 1 : index], index + 1
    return "", position


def _uncovered(rows: Table) -> Table:
    r"""Return rows without the empty cells that stand below a `\multirow`."""
    below: dict[int, int] = {}
    result: Table = []
    for row in rows:
        column, covered, below = 0, below, {c: left - 1 for c, left in below.items() if left > 1}
        kept = []
        for cell in row:
            if cell.text or column not in covered:
                kept.append(cell)
                if cell.rowspan > 1:
                    below |= dict.fromkeys(range(column, column + cell.colspan), cell.rowspan - 1)
            column += cell.colspan
        result.append(kept)
    return result


def _markdown_tables(text: str) -> list[Table]:
    tables: list[Table] = []
    lines = text.splitlines()
    width = 0
    for above, line in zip(["", *lines], lines, strict=False):
        cells = _markdown_cells(line)
        header = _markdown_cells(above)
        if (
            not width
            and cells
            and len(cells) == len(header)
            and all(re.fullmatch(r":?-+:?", cell) for cell in cells)
        ):
            width = len(cells)
            tables.append([[Cell(clean(cell)) for cell in header]])
        elif width and "|" in line:
            tables[-1].append([Cell(clean(cell)) for cell in (cells + [""] * width)[:width]])
        else:
            width = 0
    return tables


def _markdown_cells(line: str) -> list[str]:
    """Return the cells of a line, [] where it has no bar."""
    if "|" not in line:
        return []
    line = re.sub(r"(?i)<br */?>", " ", line.replace("\\|", "\0").strip())
    cells = line.removeprefix("|").removesuffix("|").split("|")
    return [cell.replace("\0", "|").replace("**", "").replace("`", "").strip() for cell in cells]


def _html_tables(text: str) -> list[Table]:
    reader = _TableReader()
    reader.feed(safe_html(text))
    reader.close()
    reader.end_cell()
    return reader.tables


class _TableReader(HTMLParser):
    """Collects the outermost tables."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tables: list[Table] = []
        self._depth = 0
        self._row_open = False
        self._spans: tuple[int, int] | None = None
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._depth += 1
            if self._depth == 1:
                self.tables.append([])
                self._row_open = False
        elif self._depth == 1 and tag == "tr":
            self._start_row()
        elif self._depth == 1 and tag in ("td", "th"):
            self.end_cell()
            if not self._row_open:
                self._start_row()
            values = dict(attrs)
            self._spans = (_span(values.get("colspan")), _span(values.get("rowspan")))
        elif tag in _HTML_BREAKS:
            self._text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self._depth == 1 and tag in ("td", "th", "tr", "table"):
            self.end_cell()
            self._row_open = self._row_open and tag in ("td", "th")
        if tag == "table":
            self._depth = max(0, self._depth - 1)
            self._text.append(" ")

    def handle_data(self, data: str) -> None:
        if self._spans:
            self._text.append(data)

    def end_cell(self) -> None:
        """Add the open cell, if any, to its row."""
        if self._spans:
            self.tables[-1][-1].append(Cell(clean("".join(self._text)), *self._spans))
        self._spans, self._text = None, []

    def _start_row(self) -> None:
        self.end_cell()
        self.tables[-1].append([])
        self._row_open = True


def _span(count: str | None) -> int:
    """Read a span as written, from 1 to `MAX_SPAN`; 1 where it is no such number."""
    digits = (count or "").strip()
    if not (digits.isascii() and digits.isdigit()):
        return 1
    return min(max(int(digits[:9]), 1), MAX_SPAN)


def _nodes(table: Table) -> int:
    return len(table) + sum(map(len, table))


@dataclass
class _Node:
    tag: str
    cell: Cell | None = None
    children: list["_Node"] = field(default_factory=list)


class _Costs(Config):
    """The costs of PubTabNet's TEDS; adding and removing cost 1 each."""

    def rename(self, node1: _Node, node2: _Node) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, second = node1.cell, node2.cell
        if first is None or second is None:
            return float(node1.tag != node2.tag)
        if (first.colspan, first.rowspan) != (second.colspan, second.rowspan):
            return 1.0
        return Levenshtein.normalized_distance(first.text, second.text)


def _tree(table: Table) -> _Node:
    rows = [_Node("tr", children=[_Node("td", cell) for cell in row]) for row in table]
    return _Node("table", children=rows)


def _without_texts(table: Table) -> Table:
    return [[Cell("", cell.colspan, cell.rowspan) for cell in row] for row in table]


def _without_equal_ends(first: Table, second: Table) -> tuple[Table, Table]:
    """Return two tables without the rows that they share at the top and at the bottom.

    Their distance stays: where adding and removing cost 1, no mapping beats the one that keeps equal
    outermost subtrees. This saves most of apted's work.
    """
    top = _shared(first, second)
    first, second = first[top:], second[top:]
    bottom = _shared(first[::-1], second[::-1])
    return first[: len(first) - bottom], second[: len(second) - bottom]


def _shared(first: Table, second: Table) -> int:
    """Count how many rows two tables have in common before the first difference."""
    rows = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], rows))
