"""Show what a model sees of a dataset's samples: tokens, which of them are learned from, images, videos."""

from dataclasses import dataclass

from posttrain.data.dataset import BrokenRow, Dataset
from posttrain.files.progress import progress_bar
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.rendering.sample_tokens import renderings
from posttrain.rendering.video_frames import VideoPlan
from posttrain.types import Sample, VideoRef

#: Broken rows that a summary names.
BROKEN_NAMED = 5


@dataclass(frozen=True)
class Token:
    """One token, or several that are shown as one: those of a character, or the placeholders of an image.

    Attributes:
        text: Its text.
        supervised: Whether it is learned from.
        count: Number of tokens.
        is_media: Whether it stands for an image or a part of a video.
    """

    text: str
    supervised: bool
    count: int = 1
    is_media: bool = False


@dataclass(frozen=True)
class View:
    """A dialogue as the model sees it.

    Attributes:
        name: `chosen` or `rejected` in a preference pair, else "".
        tokens: The tokens, in order.
        num_tokens: Number of tokens, image placeholders included.
        num_supervised: Number of tokens that are learned from.
    """

    name: str
    tokens: list[Token]
    num_tokens: int
    num_supervised: int


@dataclass(frozen=True)
class Shown:
    """One sample that is shown in full.

    Attributes:
        sample: The sample.
        views: Its dialogue; for a preference pair, one for each reply.
        images: Paths of its images, in the order of the first view's placeholders.
        videos: Its videos, with what the model sees of each.
        problem: Why it cannot be shown to the model, in which case there are no views; else "".
    """

    sample: Sample
    views: list[View]
    images: list[str]
    videos: list[tuple[VideoRef, VideoPlan]]
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    Attributes:
        name: Name of the dataset.
        model: Name of the checkpoint whose tokens were counted.
        rows: Number of usable rows.
        filtered: Number of rows that filters removed.
        broken: The rows that cannot be used.
        lengths: Number of tokens of each measured sample; of the longer reply in a preference pair.
        unrendered: (id, reason) of each measured sample that cannot be shown to the model.
        shown: The samples that are shown in full.
    """

    name: str
    model: str
    rows: int
    filtered: int
    broken: list[BrokenRow]
    lengths: list[int]
    unrendered: list[tuple[str, str]]
    shown: list[Shown]

    def summary(self) -> str:
        """Say in a line how many rows are usable and how many were looked at, and which are not."""
        broken = f"{len(self.broken):,} broken" if self.broken else "none broken"
        measured = len(self.lengths) + len(self.unrendered)
        text = f"{self.name}: {self.rows:,} rows are usable, {broken}; {measured:,} were measured"
        first = [f"\n  {row}" for row in self.broken[:BROKEN_NAMED]]
        return text + "".join(first)


def inspect_dataset(
    name: str, dataset: Dataset, model: str, renderer: Renderer, shown: int, measured: int
) -> Inspection:
    """Measure samples that lie evenly over a dataset, and show some of them in full.

    Args:
        name: Name of the dataset.
        dataset: Its rows.
        model: Name of the checkpoint.
        renderer: The renderer of that checkpoint.
        shown: Number of samples to show in full.
        measured: Number of samples to measure; never fewer than are shown.
    """
    renderer = renderer.counting()  # pixels are not looked at
    rows = _spread(len(dataset), max(shown, measured))
    in_full = set(_spread(len(rows), shown))
    lengths: list[int] = []
    unrendered: list[tuple[str, str]] = []
    cards: list[Shown] = []
    for number, row in enumerate(progress_bar("measuring", rows)):
        sample = dataset[row]
        try:
            dialogues = renderings(sample, renderer)
        except ValueError as error:
            unrendered.append((sample.id, str(error)))
            if number in in_full:
                cards.append(Shown(sample, [], [], [], str(error)))
            continue
        lengths.append(max(len(rendered.token_ids) for _, rendered in dialogues))
        if number in in_full:
            views = [_view(name, rendered, renderer) for name, rendered in dialogues]
            images = [image.ref.path for image in dialogues[0][1].images]
            videos = [(video.ref, renderer.videos.plan(video.ref)) for video in dialogues[0][1].videos]
            cards.append(Shown(sample, views, images, videos))
    return Inspection(name, model, len(dataset), dataset.filtered, dataset.broken, lengths, unrendered, cards)


def _view(name: str, rendered: Rendered, renderer: Renderer) -> View:
    """Cut a rendered dialogue into tokens to show."""
    ids, supervised = rendered.token_ids, rendered.supervised
    starts = {image.offset: (f"image {n}", image.num_tokens) for n, image in enumerate(rendered.images)}
    for n, video in enumerate(rendered.videos):
        starts |= {offset: (f"video {n}", count) for offset, count in video.runs}
    tokenizer = renderer.tokenizer
    tokens: list[Token] = []
    place = 0
    while place < len(ids):
        if place in starts:
            text, count = starts[place]
            tokens.append(Token(text, False, count, is_media=True))
        else:
            # Tokens that make up one character are shown together; in UTF-8 it has at most four bytes.
            count, text = 1, tokenizer.decode(ids[place : place + 1])
            while "\ufffd" in text and count < 4 and place + count < len(ids) and place + count not in starts:
                count += 1
                text = tokenizer.decode(ids[place : place + count])
            if "\ufffd" in text:
                count, text = 1, tokenizer.decode(ids[place : place + 1])
            tokens.append(Token(text, supervised[place], count))
        place += count
    return View(name, tokens, len(ids), sum(supervised))


def _spread(size: int, count: int) -> list[int]:
    """Return `count` numbers that lie evenly over range(size), beginning with 0; all if there are fewer."""
    count = min(size, count)
    return [index * size // count for index in range(count)]
