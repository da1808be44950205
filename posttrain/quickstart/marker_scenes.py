"""The quickstart's task: read a letter that is too small to be read without zooming in.

A scene has 512×512 pixels and three to five coloured markers, each with one of eight letters. The tiny
model's processor shrinks it to 64×64 pixels, where a letter is about two pixels tall; guessing it is right
once in eight times. Zooming in on the marker makes the letter legible.

`write` is the generator behind `datasets_cfg/markers_*.yaml`; it writes images as files and rows in
the canonical JSONL format.
"""

import functools
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image

from posttrain.files.strict_json import Json, JsonObject
from posttrain.media.images import encode_png, pixel_hash, save_image, save_png
from posttrain.messages import message_to_json
from posttrain.plugins import resolve
from posttrain.quickstart.look_scenes import (
    LookKind,
    LookQuestion,
    careless_looks,
    is_look_kind,
    look_scenes,
    looked_at,
    questions,
)
from posttrain.quickstart.scene_tasks import (
    SceneTask,
    ask,
    counted_scenes,
    is_scene_task,
    located,
    marker_list,
    place_question,
)
from posttrain.quickstart.scenes import (
    COLOURS,
    COORDINATE_STEP,
    LETTERS,
    Marker,
    Scene,
    Split,
    scene_stream,
    sloppy_box,
)
from posttrain.types import Block, ImageRef, Message, text_message

TOOL = "image_zoom_in"
LIST_QUESTION = "List the markers."
Kind = Literal[
    "zoom", "list", "read", "direct", "question", "prompt", "thinking", "pairs", SceneTask, LookKind
]
#: Flaws of dialogues of the kind `thinking`; curation finds each of them by another rule.
FLAWS = ("wrong answer", "no thinking", "endless thinking", "repetition")
#: Kinds whose rows announce the tool.
WITH_TOOL = ("zoom", "prompt", "thinking", "pairs", "looks", "looks_simple")


def question(colour: str) -> str:
    """Write the task's question about one marker."""
    return f"Which letter is on the {colour} marker?"


def zoom_call(colour: str, box: list[int]) -> str:
    """Write a tool call in the families' format (Hermes), with the coordinates directly after the label."""
    arguments = {"img_idx": 0, "label": colour, "bbox_2d": box}
    call = json.dumps({"name": "image_zoom_in_tool", "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


def corpus() -> Iterator[str]:
    """Yield texts of the task, for training the tiny tokenizer."""
    rng = random.Random("marker-scenes/corpus")
    for scene in itertools.islice(scene_stream("pretrain", 0), 200):
        yield "system\nuser\nassistant\n"
        yield LIST_QUESTION
        yield marker_list(scene, rng, 1.0)
        for marker in scene.markers:
            yield question(marker.colour)
            yield place_question(marker.colour)
            yield zoom_call(marker.colour, sloppy_box(marker, rng, 1.0))
            yield marker.letter


def phrases() -> list[str]:
    """List the phrases that should be one token each: the JSON around values, colours and coordinates.

    A colour and the opening of its box are one token as well, so that the first coordinate directly follows
    the colour: then one step of attention finds the marker, and 400 steps of training are enough to learn it.
    With a token between them, the model still picked any marker of the scene after that training.
    """
    before, after = zoom_call("<label>", [0, 0, 0, 0]).split("<label>")
    opening, closing = after.split("0, 0, 0, 0")
    listing = json.dumps([{"label": "<label>", "bbox_2d": [0]}, {"label": "<label>", "bbox_2d": [0]}])
    list_opening, list_middle, _ = listing.split("<label>")
    between = list_middle.split("[0")[1]
    asked = question("<colour>").split("<colour>")
    texts = [before, closing, list_opening, list_opening[1:], between, *asked, LIST_QUESTION]
    colours = [f"{colour}{end}" for colour in COLOURS for end in ("", opening)]
    values = range(0, 1001, COORDINATE_STEP)
    return texts + colours + [f"{value}{comma}" for value in values for comma in ("", ", ")]


def _user(image: ImageRef, text: str) -> Message:
    """Make a user turn of an image and a text."""
    return Message("user", (Block("image", image=image), Block("text", text=text)))


def _thinking(thought: str, said: str) -> str:
    """Write a turn in the families' thinking format."""
    return f"<think>\n{thought}\n</think>\n\n{said}"


class _Crop(Protocol):
    """What the tool returns."""

    text: str
    images: Sequence[Image.Image]


class _Zoom(Protocol):
    """The tool, which `tools_env` has."""

    def __call__(self, arguments: dict[str, object], images: list[ImageRef]) -> _Crop:
        """Crop an image as the arguments say."""
        ...


@functools.cache
def _zoom() -> _Zoom:
    """Return the tool, one for all scenes because it keeps the last image that it decoded."""
    return resolve(TOOL, "posttrain.tools", type)()


def _looked(image: ImageRef, marker: Marker, box: list[int], directory: Path) -> tuple[ImageRef, Message]:
    """Call the tool, and return the crop and the message that shows it."""
    result = _zoom()({"img_idx": 0, "label": marker.colour, "bbox_2d": box}, [image])
    crop = save_image(result.images[0], directory)
    return crop, Message("tool", (Block("image", image=crop), Block("text", text=result.text)))


def _dialogue(
    image: ImageRef, marker: Marker, box: list[int], letter: str, directory: Path, flaw: str = ""
) -> list[Message]:
    """Make the turns after the question: the call, with where the marker is; the crop; and the letter."""
    _, observation = _looked(image, marker, box, directory)
    call = zoom_call(marker.colour, box)
    asked = question(marker.colour)
    where = f"{place_question(marker.colour)} {located(marker, box)}"
    calling, answering = _thinking(where, call), _thinking(f"{asked} {letter}", letter)
    if flaw == "no thinking":
        calling, answering = call, letter
    elif flaw == "endless thinking":
        answering = f"<think>\n{asked} {letter}"
    elif flaw == "repetition":
        answering = _thinking("\n".join([f"{asked} {letter}"] * 16), letter)
    return [text_message("assistant", calling), observation, text_message("assistant", answering)]


def _look_dialogue(
    image: ImageRef, asked: LookQuestion, looks: int, directory: Path, rng: random.Random, sloppiness: float
) -> list[Message]:
    """Make the turns after a question that take so many looks, each read in the turn that follows it."""
    turns: list[Message] = []
    read = ""
    for marker in looked_at(asked, looks):
        box = sloppy_box(marker, rng, sloppiness)
        _, observation = _looked(image, marker, box, directory)
        turns += [text_message("assistant", f"{read}{zoom_call(marker.colour, box)}"), observation]
        read = f"{marker.letter}\n"
    return [*turns, text_message("assistant", asked.letters)]


def _other_letter(letter: str, rng: random.Random) -> str:
    """Choose another letter."""
    return rng.choice([other for other in LETTERS if other != letter])


@dataclass(frozen=True)
class _Row:
    """A row of the dataset.

    Attributes:
        messages: The dialogue.
        ground_truth: The letter, the boxes or the number that the row asks for.
        columns: Other columns.
        chosen: The preferred turns of a preference pair.
        rejected: The rejected turns.
    """

    messages: list[Message]
    ground_truth: Json = None
    columns: JsonObject = field(default_factory=dict)
    chosen: list[Message] = field(default_factory=list)
    rejected: list[Message] = field(default_factory=list)

    def to_json(self, name: str, tools: list[str], directory: Path) -> JsonObject:
        """Return the row in the canonical form, images relative to the JSONL's folder."""

        def written(messages: list[Message]) -> Json:
            return [message_to_json(_relative(message, directory)) for message in messages]

        row: JsonObject = {"id": name, "messages": written(self.messages), "tools": [*tools]}
        row |= {"ground_truth": self.ground_truth, **self.columns}
        if self.chosen:
            row |= {"chosen": written(self.chosen), "rejected": written(self.rejected)}
        return row


def _rows(
    kind: Kind,
    scene: Scene,
    image: ImageRef,
    directory: Path,
    rng: random.Random,
    sloppiness: float,
    flawed: float,
) -> Iterator[_Row]:
    """Make the rows of one scene: one for each marker, or one for the whole scene."""
    if kind == "list":
        answer = text_message("assistant", marker_list(scene, rng, sloppiness))
        yield _Row([_user(image, LIST_QUESTION), answer])
        return
    if is_scene_task(kind):
        for asked in ask(kind, scene, rng, sloppiness):
            said = [] if asked.answer is None else [text_message("assistant", asked.answer)]
            shown = _user(image, asked.text) if asked.shown else text_message("user", asked.text)
            yield _Row([shown, *said], asked.ground_truth)
        return
    if is_look_kind(kind):
        yield from _look_rows(kind, scene, image, directory, rng, sloppiness, flawed)
        return
    markers = [rng.choice(scene.markers)] if kind in ("direct", "question") else scene.markers
    for marker in markers:
        asked, letter = _user(image, question(marker.colour)), marker.letter
        answer = text_message("assistant", letter)
        row = _Row([asked], letter, {"box": [round(edge) for edge in marker.box()], "target_tool_calls": 1})
        if kind in ("zoom", "read"):
            box = sloppy_box(marker, rng, sloppiness)
            crop, observation = _looked(image, marker, box, directory)
            call = text_message("assistant", zoom_call(marker.colour, box))
            dialogue = (
                [asked, call, observation] if kind == "zoom" else [_user(crop, question(marker.colour))]
            )
            row = replace(row, messages=[*dialogue, answer])
        elif kind == "direct":
            row = replace(row, messages=[asked, answer])
        elif kind == "prompt":
            yield row
            exact = sloppy_box(marker, rng, 0.0)
            before_answer = _dialogue(image, marker, exact, letter, directory)[:2]
            row = replace(row, messages=[asked, *before_answer])
        elif kind == "thinking":
            flaw = rng.choice(FLAWS) if rng.random() < flawed else ""
            said = _other_letter(letter, rng) if flaw == "wrong answer" else letter
            box = sloppy_box(marker, rng, sloppiness)
            row = replace(row, messages=[asked, *_dialogue(image, marker, box, said, directory, flaw)])
        elif kind == "pairs":
            exact, careless = sloppy_box(marker, rng, 0.0), sloppy_box(marker, rng, sloppiness)
            if careless == exact:
                continue
            row = replace(
                row,
                chosen=_dialogue(image, marker, exact, letter, directory, "no thinking"),
                rejected=_dialogue(image, marker, careless, letter, directory, "no thinking"),
            )
        yield row


def _look_rows(
    kind: Kind,
    scene: Scene,
    image: ImageRef,
    directory: Path,
    rng: random.Random,
    sloppiness: float,
    careless: float,
) -> Iterator[_Row]:
    """Make the rows of a scene about how often to look; of the dialogues a share does so carelessly."""
    for asked in questions(kind, scene, rng):
        columns: JsonObject = {
            "looks": asked.looks,
            "readings": {marker.colour: marker.letter for marker in asked.markers},
        }
        turns = [_user(image, " ".join(question(marker.colour) for marker in asked.markers))]
        if kind != "looks_question":
            looks = careless_looks(asked, rng) if rng.random() < careless else asked.looks
            turns += _look_dialogue(image, asked, looks, directory, rng, sloppiness)
        yield _Row(turns, asked.letters, columns)


def write(
    directory: Path,
    *,
    kind: Kind,
    split: Split,
    count: int,
    seed: int = 0,
    sloppiness: float = 0.0,
    flawed: float = 0.0,
) -> None:
    """Write the rows of `count` scenes to `directory/data.jsonl`, and their images beside it.

    Args:
        directory: An existing, empty folder.
        kind: A task of `scene_tasks`, a kind of `look_scenes`, `zoom` (dialogues of two turns with the tool),
            `list` (name and locate every marker), `read` (the question about a crop), `direct` (the question
            answered at once), `question` (a prompt with its ground truth, for RL), `thinking` (like `zoom`,
            but each turn thinks first: where the marker is, and what it says), `prompt` (the messages before
            each turn of a `thinking` dialogue, for a teacher) or `pairs` (an answer with an exact box,
            preferred to the same with a careless one).
        split: The stream of scenes to draw from.
        count: Number of scenes; `list`, `direct` and `question` make one row per scene, the others one per
            marker, or two.
        seed: Seed of the stream.
        sloppiness: How careless the demonstrated boxes are, from 0 to 1; in `pairs` only the rejected ones.
        flawed: Share of `thinking` dialogues that get one of FLAWS, as a model's own answers would have; of
            `looks`, that look another number of times than is needed.
    """
    images = directory / "images"
    images.mkdir()
    rng = random.Random(f"marker-rows/{kind}/{split}/{seed}")
    stream = counted_scenes if kind.startswith("count") else scene_stream
    scenes = (look_scenes if is_look_kind(kind) else stream)(split, seed)
    with (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            scene = next(scenes)
            digest, png = _drawn(scene)
            image = save_png(lambda png=png: png, digest, images)
            for index, row in enumerate(_rows(kind, scene, image, images, rng, sloppiness, flawed)):
                tools = [TOOL] if kind in WITH_TOOL else []
                line = row.to_json(f"{split}-{kind}-{number}-{index}", tools, directory)
                file.write(json.dumps(line) + "\n")


@functools.lru_cache(maxsize=1024)
def _drawn(scene: Scene) -> tuple[str, bytes]:
    """Return the pixel hash and the PNG of a scene (about 10 KB), which all kinds of a split share."""
    image = scene.draw()
    return pixel_hash(image), encode_png(image)


def _relative(message: Message, directory: Path) -> Message:
    """Make the paths of images relative to a folder, so that the folder can be moved."""
    content = []
    for block in message.content:
        if block.image is not None:
            path = Path(block.image.path).relative_to(directory.absolute())
            block = replace(block, image=replace(block.image, path=str(path)))
        content.append(block)
    return replace(message, content=tuple(content))
