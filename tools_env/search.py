"""Search in a folder of texts, by BM25 in an index of our own."""

import heapq
import math
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from posttrain.files.strict_json import parse_json
from posttrain.types import ImageRef, ToolSpec
from tools_env.sdk import Arguments, ToolError, ToolResult, schema_from_hints

#: BM25's saturation of repeated words, and how much long passages are held back (the usual values).
K1, B = 1.2, 0.75
#: Most characters of a passage, and most passages of a corpus.
PASSAGE, MAX_PASSAGES = 600, 200_000
MAX_QUERY = 1000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Passage:
    """A piece of a text.

    Attributes:
        source: The file, and its place in there.
        text: What it says.
    """

    source: str
    text: str


def _search(query: Annotated[str, "A few words."]) -> None:
    """Be what the schema is made from."""


class TextSearch:
    """Find passages in `.txt`, `.md` and `.jsonl` files (with a column `text`) below a folder.

    The index is made when the tool is first called, once for all episodes of a process.

    Args:
        path: The folder, or one file.
        limit: Passages that a search returns.

    Example:
        TextSearch("corpus")({"query": "height of the tower"}, [])
    """

    spec = ToolSpec(
        "search_tool",
        "Search a collection of texts; returns the passages that fit the query best.",
        schema_from_hints(_search),
    )

    def __init__(self, path: str, limit: int = 3) -> None:
        self._path = Path(path)
        if not self._path.exists():
            raise ValueError(f"there is no {self._path.absolute()}")
        if not 1 <= limit <= 20:
            raise ValueError(f"limit must be from 1 to 20, got {limit}")
        self._limit = limit
        self._index: Index | None = None
        self._lock = threading.Lock()
        self.deadline_s = 60.0  # the first search makes the index

    def __call__(self, arguments: Arguments, images: list[ImageRef]) -> ToolResult:
        """Search.

        Raises:
            ToolError: If the query has no words, or nothing is found.
        """
        query = str(arguments["query"])
        if len(query) > MAX_QUERY:
            raise ToolError(f"the query has {len(query):,} characters; {MAX_QUERY} are read at most")
        if not words_of(query):
            raise ToolError("the query has no words")
        with self._lock:
            if self._index is None:
                self._index = Index(list(read_passages(self._path)))
        found = self._index.search(query, self._limit)
        if not found:
            raise ToolError("nothing is found; try other words")
        return ToolResult("\n\n".join(f"[{each.source}]\n{each.text}" for each in found))


class Index:
    """Passages, and in which of them each word stands.

    Args:
        passages: In any number.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._places: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self._lengths: list[int] = []
        for number, passage in enumerate(passages):
            counts = Counter(words_of(passage.text))
            self._lengths.append(counts.total())
            for word, count in counts.items():
                self._places[word].append((number, count))
        self._mean = sum(self._lengths) / max(1, len(passages)) or 1.0

    def search(self, query: str, limit: int) -> list[Passage]:
        """Return the passages that fit a query best, the best first."""
        scores: defaultdict[int, float] = defaultdict(float)
        for word in set(words_of(query)):
            places = self._places.get(word, [])
            rarity = math.log(1 + (len(self._passages) - len(places) + 0.5) / (len(places) + 0.5))
            for number, count in places:
                length = 1 - B + B * self._lengths[number] / self._mean
                scores[number] += rarity * count * (K1 + 1) / (count + K1 * length)
        best = heapq.nsmallest(limit, scores.items(), key=lambda item: (-item[1], item[0]))
        return [self._passages[number] for number, _ in best]


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters."""
    return _WORD.findall(text.casefold())


def read_passages(path: Path) -> Iterator[Passage]:
    """Read the passages of a folder's files, in the order of their names.

    Raises:
        OSError: If a file cannot be read.
    """
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    count = 0
    for file in files:
        if file.suffix not in (".txt", ".md", ".jsonl"):
            continue
        name = str(file.relative_to(path)) if path.is_dir() else file.name
        with file.open(encoding="utf-8", errors="replace") as lines:
            for source, text in _texts(lines, name, file.suffix == ".jsonl"):
                count += 1
                if count > MAX_PASSAGES:
                    return
                yield Passage(source, text)


def _texts(lines: Iterator[str], name: str, rows: bool) -> Iterator[tuple[str, str]]:
    """Cut a file into passages, at empty lines or at its rows, and those that are long into pieces."""
    whole: list[str] = []
    number = 0

    def pieces(text: str) -> Iterator[tuple[str, str]]:
        nonlocal number
        for start in range(0, len(text), PASSAGE):
            number += 1
            yield f"{name}:{number}", text[start : start + PASSAGE]

    for line in lines:
        if rows:
            yield from pieces(_text_of(line))
        elif line.strip():
            whole.append(line.strip())
        else:
            yield from pieces(" ".join(whole))
            whole.clear()
    yield from pieces(" ".join(whole))


def _text_of(line: str) -> str:
    try:
        row = parse_json(line)
    except ValueError:
        return ""
    text = row.get("text") if isinstance(row, dict) else None
    return text if isinstance(text, str) else ""
