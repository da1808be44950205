"""What a filter is, and the filters that need neither a model nor a reward."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Protocol
from unicodedata import category

from posttrain.config.curation_steps import DomainStep, FilterStep, QueryStep, ResponseStep
from posttrain.curation.asking import CachedModel
from posttrain.curation.outcomes import Changes, Outcome
from posttrain.curation.playing import PlaysEpisodes
from posttrain.curation.rows import answer_of, has_images, query_of, response_of, to_last_user_turn
from posttrain.curation.scoring import Scoring
from posttrain.curation.taxonomy import Taxonomy
from posttrain.messages import THINK_END
from posttrain.types import Block, Message, Sample, ToolSpec

#: What stands for a character or an object that could not be written.
_REPLACEMENTS = "\ufffc\ufffd"
#: Scripts that are written without a mark at a sentence's end: Thai, Lao, Tibetan.
_UNMARKED = re.compile(r"[\u0e00-\u0eff\u0f00-\u0fff]")
#: Characters that can end a sentence, a formula, a table, an item of a list or a block of code.
_ENDS = tuple(".!?…:;。！？：；)）]】}」』\"'”’`*_$|>")
#: Answers of fewer characters ("blue", "42 km") need no full stop.
_MIN_SENTENCE = 200
_FENCE = re.compile(r"^\s{0,3}(?:```|~~~)", re.MULTILINE)
_BOX = re.compile(r"\\boxed\s*\{")


@dataclass(frozen=True)
class Context:
    """What a filter may need of its curation.

    Attributes:
        taxonomy: The domains.
        scoring: The rewards of the recipe.
        entering: Returns the rows that come to this step, in order, with their numbers.
        endpoints: The models by name.
        seed: Seed of the recipe.
        episodes: Plays the step's task, where it has one.
        tools: What a model is told of the tools that the step names.
        keep_images: Copies a dialogue's images to where the curation's rows keep them.
    """

    taxonomy: Taxonomy
    scoring: Scoring
    entering: Callable[[], Iterator[tuple[int, Sample]]]
    endpoints: dict[str, CachedModel] = field(default_factory=dict)
    seed: int = 0
    episodes: PlaysEpisodes | None = None
    tools: Sequence[ToolSpec] = ()
    keep_images: Callable[[Sequence[Message], Sample], Sequence[Message]] = lambda messages, _: messages


class Filter(Protocol):
    """One step at work; its verdict depends only on the row, the recipe and the data."""

    async def judge(self, row: int, sample: Sample) -> Outcome:
        """Return the verdict on a row.

        Args:
            row: Number of the row.
            sample: The row, with the changes of earlier steps.

        Raises:
            RowError: If there can be no verdict on this row, for example if an endpoint does not answer.
            CurationError: If there can be no verdict on any row.
        """
        ...


def applies(step: FilterStep, sample: Sample) -> bool:
    """Tell whether a step looks at a row, by the row's domain."""
    own = {sample.columns.get("domain"), sample.columns.get("subcategory")}
    return not step.domains or not own.isdisjoint(step.domains)


class Query:
    """Drops queries that are empty or too long, that have no reference answer, or that occurred before."""

    def __init__(self, step: QueryStep, context: Context):
        self._step = step
        self._repeated = _repeated(context.entering()) if step.drop_repeated else set()

    async def judge(self, row: int, sample: Sample) -> Outcome:
        """Judge a row by its prompt alone."""
        step, prompt = self._step, to_last_user_turn(sample)
        chars = sum(len(message.text) for message in prompt)
        content = sum(1 for _ in islice(filter(_says_something, query_of(sample)), step.min_chars))
        scores = {"chars": float(chars)}
        if content < step.min_chars:
            return Outcome("without content", f"{content} letters, digits and pictures", scores)
        if chars > step.max_chars:
            return Outcome("too long", f"{chars:,} characters", scores)
        if step.require_ground_truth and sample.ground_truth in (None, "", []):
            return Outcome("nothing to verify by", scores=scores)
        return Outcome("repeated" if row in self._repeated else "", scores=scores)


class Domain:
    """Finds a query's domain by the taxonomy's keywords."""

    def __init__(self, step: DomainStep, context: Context):
        self._step, self._taxonomy = step, context.taxonomy

    async def judge(self, row: int, sample: Sample) -> Outcome:
        """Judge a row by the words of its query."""
        name, keywords = self._taxonomy.by_keywords(query_of(sample), has_images(sample))
        note = f"keywords: {', '.join(keywords)}" if keywords else "no keyword"
        return in_domain(self._step, self._taxonomy, name, note)


class Response:
    """Drops responses that are missing, unfinished, of a wrong format, or guessed without reasoning."""

    def __init__(self, step: ResponseStep, context: Context):
        self._step = step

    async def judge(self, row: int, sample: Sample) -> Outcome:
        """Judge a row by the text of its last turn."""
        turns = [message.text for message in response_of(sample) if message.role == "assistant"]
        text = turns[-1].strip() if turns else ""
        scores = {"chars": float(sum(map(len, turns)))}
        if not answer_of(text):
            return Outcome("no answer", scores=scores)
        if sample.columns.get("finish_reason") == "length":
            return Outcome("truncated", "finish_reason is length", scores)
        if self._step.max_chars is not None and scores["chars"] > self._step.max_chars:
            return Outcome("too long", f"{scores['chars']:,.0f} characters", scores)
        if unfinished := _unfinished(answer_of(text)):
            return Outcome("incomplete", unfinished, scores)
        if misshapen := _misshapen(text, self._step.thinking):
            return Outcome("bad format", misshapen, scores)
        reasoning = len(text) - len(_last_paragraph(answer_of(text)))
        scores["reasoning_chars"] = float(reasoning)
        if reasoning < self._step.min_reasoning_chars:
            return Outcome("guessed without steps", f"{reasoning} characters before the end", scores)
        return Outcome(scores=scores)


def in_domain(step: DomainStep, taxonomy: Taxonomy, name: str, note: str) -> Outcome:
    """Make the verdict on a row of a known sub-category.

    Args:
        step: The step, which may keep some domains only.
        taxonomy: The domains.
        name: The sub-category.
        note: How it was found.
    """
    domain = taxonomy.domain_of[name]
    if step.keep and {domain, name}.isdisjoint(step.keep):
        return Outcome("of another domain", f"{domain} / {name}; {note}")
    return Outcome(note=note, changes=Changes(columns={"domain": domain, "subcategory": name}))


def _repeated(entering: Iterator[tuple[int, Sample]]) -> set[int]:
    """Find the rows whose prompt, images and videos occurred in an earlier row.

    Case and white space do not count; of a video its part and its rate do.
    """
    seen: set[bytes] = set()
    repeated: set[int] = set()
    for row, sample in entering:
        prompt = to_last_user_turn(sample)
        texts = [" ".join(message.text.casefold().split()) for message in prompt]
        media = [[_medium(block) for block in message.content if block.type != "text"] for message in prompt]
        key = hashlib.sha256(json.dumps([texts, media]).encode()).digest()[:16]
        if key in seen:
            repeated.add(row)
        seen.add(key)
    return repeated


def _medium(block: Block) -> str | dict[str, Any] | None:
    """Return what tells an image or a video from others."""
    return (
        block.image.path
        if block.image is not None
        else block.video and asdict(replace(block.video, sha256=""))
    )


def _says_something(char: str) -> bool:
    """Tell whether a character is a letter, a digit or a picture, of whatever script; marks ask nothing."""
    return char.isalnum() or (category(char) == "So" and char not in _REPLACEMENTS)


def _unfinished(answer: str) -> str:
    """Say why an answer looks cut off; "" if it does not."""
    if len(_FENCE.findall(answer)) % 2:
        return "a block of code is not closed"
    if (box := list(_BOX.finditer(answer))) and _is_open(answer[box[-1].end() :]):
        return "a \\boxed{ is not closed"
    last = answer.splitlines()[-1].strip()
    prose = len(answer) >= _MIN_SENTENCE and len(last.split()) > 3
    if prose and not last.endswith(_ENDS) and _ends_in_a_word(last) and not _FENCE.search(answer):
        return f"it ends with {last[-40:]!r}"
    return ""


def _ends_in_a_word(line: str) -> bool:
    """Tell whether a line ends in a letter where its script would have a mark."""
    return line[-1].isalpha() and not _UNMARKED.match(line[-1])


def _is_open(text: str) -> bool:
    """Tell whether a brace that was opened before a text is still open at its end."""
    depth = 1
    for mark in re.finditer(r"(?<!\\)[{}]", text):
        depth += 1 if mark.group() == "{" else -1
        if depth == 0:
            return False
    return True


def _misshapen(text: str, thinking: str) -> str:
    """Say what is wrong with the format of a response's thinking; "" if nothing is."""
    opened, closed = text.count("<think>"), text.count(THINK_END)
    if thinking == "forbidden":
        return "it has thinking" if opened or closed else ""
    if (opened, closed) == (0, 0):
        return "it has no thinking" if thinking == "required" else ""
    if (opened, closed) != (1, 1) or not text.startswith("<think>"):
        return f"<think> stands {opened}, </think> {closed} times, or not at the beginning"
    return "" if text.partition(THINK_END)[0].removeprefix("<think>").strip() else "the thinking is empty"


def _last_paragraph(text: str) -> str:
    """Return the last line of a text that is not empty."""
    return re.split(r"\n\s*\n|\n", text.strip())[-1]
