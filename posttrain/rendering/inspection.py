"""What a dataset's samples look like to a model: tokens, what is learned from them, images and videos."""

from dataclasses import dataclass

from posttrain.data.dataset import BrokenRow, Dataset
from posttrain.files.progress import progress_bar
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.rendering.sample_tokens import renderings
from posttrain.rendering.video_frames import VideoPlan
from posttrain.types import Sample, VideoRef


@dataclass(frozen=True)
class Token:
    """A token, the few that make up one character, or the placeholders of an image or of a video's part.

    Attributes:
        text: What it says.
        supervised: Whether the loss is on it.
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
        name: `chosen`, `rejected`, or "" for the only one.
        tokens: In order.
        num_tokens: Of the dialogue, image placeholders included.
        num_supervised: Those with loss.
    """

    name: str
    tokens: list[Token]
    num_tokens: int
    num_supervised: int


@dataclass(frozen=True)
class Shown:
    """One sample.

    Attributes:
        sample: The sample.
        views: One, or two of a preference pair.
        images: Paths, in the order of the first view's placeholders.
        videos: The same of videos, with what the model sees of each.
        problem: Why it cannot be shown to the model; views are then empty.
    """

    sample: Sample
    views: list[View]
    images: list[str]
    videos: list[tuple[VideoRef, VideoPlan]]
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        name: The dataset's.
        model: Whose tokens they are.
        rows: Good rows.
        filtered: Rows that filters removed.
        broken: Rows set aside.
        lengths: Tokens of each measured sample, of a pair the longer one's.
        unrendered: (id, reason) of measured samples that cannot be shown to the model.
        shown: Some samples in full.
    """

    name: str
    model: str
    rows: int
    filtered: int
    broken: list[BrokenRow]
    lengths: list[int]
    unrendered: list[tuple[str, str]]
    shown: list[Shown]


def inspect_dataset(
    name: str, dataset: Dataset, model: str, renderer: Renderer, shown: int, measured: int
) -> Inspection:
    """Look at samples that lie evenly over a dataset.

    Args:
        name: The dataset's.
        dataset: Its rows.
        model: The checkpoint whose tokens are wanted, by the name to show.
        renderer: Of that checkpoint.
        shown: How many samples to show in full.
        measured: How many to measure, at least as many as are shown.
    """
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
            # A character of several tokens is shown whole; the longest in UTF-8 has four bytes.
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
    """`count` numbers evenly over range(size), the first among them; all of them where there are fewer."""
    count = min(size, count)
    return [index * size // count for index in range(count)]
