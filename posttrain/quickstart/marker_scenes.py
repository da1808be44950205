"""The quickstart's task: read a letter that is too small to see without zooming in.

A scene is 512×512 pixels with three to five coloured markers, each bearing one of eight letters.
The tiny model's processor shrinks a scene to 64×64 pixels, where a letter is about two pixels tall:
guessing gives one in eight. A zoom onto the marker makes the letter legible.

`write` is the generator behind `datasets_cfg/markers_*.yaml`; it writes images as files and rows in
the canonical JSONL format.
"""

import functools
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw, ImageFont

from posttrain.media.images import encode_png, pixel_hash, save_image, save_png
from posttrain.messages import message_to_json
from posttrain.plugins import resolve
from posttrain.types import Block, ImageRef, Message, text_message

SCENE_SIZE = 512
LETTERS = "AHKLOTXZ"
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (240, 80, 70),
    "green": (80, 195, 95),
    "blue": (95, 145, 250),
    "yellow": (240, 215, 60),
    "purple": (205, 110, 230),
    "cyan": (80, 215, 225),
}
#: Boxes are written in norm_1000 on this grid, so that one token holds one coordinate.
COORDINATE_STEP = 40
TOOL = "image_zoom_in"
LIST_QUESTION = "List the markers."
#: Splits never share a scene: each draws from its own stream of random numbers.
SPLIT_STREAMS = {"pretrain": 0, "sft": 1, "train": 2, "validation": 3, "test": 4}

Kind = Literal["zoom", "list", "locate", "read", "direct", "question", "prompt", "thinking", "pairs"]
#: What a flawed dialogue of the kind `thinking` has; curation finds each by a rule of its own.
FLAWS = ("wrong answer", "no thinking", "endless thinking", "repetition")
#: Kinds whose rows announce the tool.
WITH_TOOL = ("zoom", "prompt", "thinking", "pairs")
Split = Literal["pretrain", "sft", "train", "validation", "test"]


@dataclass(frozen=True)
class Marker:
    """A disc with a letter; centre and diameter in pixels of the scene.

    Example:
        Marker("red", "K", x=130, y=402, diameter=72, letter_height=24)
    """

    colour: str
    letter: str
    x: int
    y: int
    diameter: int
    letter_height: int

    def box(self) -> tuple[float, float, float, float]:
        """The marker's bounding box, in norm_1000."""
        radius = self.diameter / 2
        edges = (self.x - radius, self.y - radius, self.x + radius, self.y + radius)
        left, top, right, bottom = (edge * 1000 / SCENE_SIZE for edge in edges)
        return left, top, right, bottom


@dataclass(frozen=True)
class Scene:
    """Markers of distinct colours on a noisy ground."""

    markers: tuple[Marker, ...]
    ground: tuple[int, int, int]

    def draw(self) -> Image.Image:
        """Render to 512×512 RGB."""
        image = Image.new("RGB", (SCENE_SIZE, SCENE_SIZE), self.ground)
        draw = ImageDraw.Draw(image)
        for marker in self.markers:
            radius = marker.diameter / 2
            disc = (marker.x - radius, marker.y - radius, marker.x + radius, marker.y + radius)
            draw.ellipse(disc, fill=COLOURS[marker.colour])
            font = ImageFont.load_default(size=marker.letter_height * 1.38)
            centre = (marker.x, marker.y)
            draw.text(centre, marker.letter, (0, 0, 0), font, anchor="mm", stroke_width=1)
        return image


def random_scene(rng: random.Random) -> Scene:
    """Three to five markers, at least 130 pixels apart, colours distinct."""
    colours = rng.sample(list(COLOURS), rng.randint(3, 5))
    markers: list[Marker] = []
    while len(markers) < len(colours):
        diameter = rng.randint(56, 88)
        margin = diameter // 2 + 4
        x, y = (rng.randint(margin, SCENE_SIZE - margin) for _ in range(2))
        if any((x - other.x) ** 2 + (y - other.y) ** 2 < 130**2 for other in markers):
            continue
        letter = rng.choice(LETTERS)
        markers.append(Marker(colours[len(markers)], letter, x, y, diameter, rng.randint(20, 27)))
    level = rng.randint(150, 235)
    red, green, blue = (level + rng.randint(-12, 12) for _ in range(3))
    return Scene(tuple(markers), (red, green, blue))


def scene_stream(split: Split, seed: int) -> Iterator[Scene]:
    """An endless, reproducible stream of scenes; splits and seeds never share one."""
    rng = random.Random(f"marker-scenes/{SPLIT_STREAMS[split]}/{seed}")
    while True:
        yield random_scene(rng)


def snap(value: float) -> int:
    """To the nearest coordinate that has a token, within 0–1000."""
    return max(0, min(1000, round(value / COORDINATE_STEP) * COORDINATE_STEP))


def sloppy_box(marker: Marker, rng: random.Random, sloppiness: float) -> list[int]:
    """A box around a marker as a careless annotator draws it.

    At 0 it is the marker's own box with a small margin; at 1 its side is up to four times the
    marker's and its centre up to a marker's diameter off. The cold start teaches the call's format
    from such boxes and leaves it to RL to learn to aim.
    """
    left, top, right, bottom = marker.box()
    side = (right - left) * (1.15 + sloppiness * rng.uniform(0, 2.85))
    drift = sloppiness * (right - left)
    centre_x = (left + right) / 2 + rng.uniform(-drift, drift)
    centre_y = (top + bottom) / 2 + rng.uniform(-drift, drift)
    x1, y1, x2, y2 = (
        snap(edge)
        for edge in (centre_x - side / 2, centre_y - side / 2, centre_x + side / 2, centre_y + side / 2)
    )
    return [min(x1, 960), min(y1, 960), max(x2, min(x1, 960) + 40), max(y2, min(y1, 960) + 40)]


def question(colour: str) -> str:
    """The task's question on one marker."""
    return f"Which letter is on the {colour} marker?"


def zoom_call(colour: str, box: list[int]) -> str:
    """The tool call in the family's own (Hermes) form; the coordinates directly follow the label."""
    arguments = {"img_idx": 0, "label": colour, "bbox_2d": box}
    call = json.dumps({"name": "image_zoom_in_tool", "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


def marker_list(scene: Scene, rng: random.Random, sloppiness: float) -> str:
    """Every marker's label and box as the family's JSON, in reading order of colour names."""
    markers = sorted(scene.markers, key=lambda marker: marker.colour)
    return json.dumps(
        [{"label": marker.colour, "bbox_2d": sloppy_box(marker, rng, sloppiness)} for marker in markers]
    )


def corpus() -> Iterator[str]:
    """Texts of the task's kind, for training the tiny tokenizer."""
    rng = random.Random("marker-scenes/corpus")
    for scene in itertools.islice(scene_stream("pretrain", 0), 200):
        yield "system\nuser\nassistant\n"
        yield LIST_QUESTION
        yield marker_list(scene, rng, 1.0)
        for marker in scene.markers:
            yield question(marker.colour)
            yield f"Where is the {marker.colour} marker?"
            yield zoom_call(marker.colour, sloppy_box(marker, rng, 1.0))
            yield marker.letter


def phrases() -> list[str]:
    """What should be one token each: the JSON around values, colours, letters and coordinates.

    A colour and the opening of its box are one token as well, so that the first coordinate follows the
    colour directly: then one step of attention finds the marker, and 400 steps of training teach it.
    With a token between them, the same training still picked any marker of the scene.
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
    return Message("user", (Block("image", image=image), Block("text", text=text)))


def _located(marker: Marker, box: list[int]) -> str:
    """One marker's box as the family's JSON."""
    return json.dumps({"label": marker.colour, "bbox_2d": box})


def _thinking(thought: str, said: str) -> str:
    """A turn in the family's thinking format."""
    return f"<think>\n{thought}\n</think>\n\n{said}"


@functools.cache
def _zoom() -> Any:
    """The tool; one for all scenes, because it keeps the last image that it decoded."""
    zoom: Any = resolve(TOOL, "posttrain.tools", object)
    return zoom()


def _looked(image: ImageRef, marker: Marker, box: list[int], directory: Path) -> tuple[ImageRef, Message]:
    """The crop that a call of the tool gives, and the message that brings it."""
    result = _zoom()({"img_idx": 0, "label": marker.colour, "bbox_2d": box}, [image])
    crop = save_image(result.images[0], directory)
    return crop, Message("tool", (Block("image", image=crop), Block("text", text=result.text)))


def _dialogue(
    image: ImageRef, marker: Marker, box: list[int], letter: str, directory: Path, flaw: str = ""
) -> list[Message]:
    """What follows the question: where the marker is, the call, the crop, what it shows, the letter."""
    _, observation = _looked(image, marker, box, directory)
    call = zoom_call(marker.colour, box)
    asked = question(marker.colour)
    where = f"Where is the {marker.colour} marker? {_located(marker, box)}"
    calling, answering = _thinking(where, call), _thinking(f"{asked} {letter}", letter)
    if flaw == "no thinking":
        calling, answering = call, letter
    elif flaw == "endless thinking":
        answering = f"<think>\n{asked} {letter}"
    elif flaw == "repetition":
        answering = _thinking("\n".join([f"{asked} {letter}"] * 16), letter)
    return [text_message("assistant", calling), observation, text_message("assistant", answering)]


def _other_letter(letter: str, rng: random.Random) -> str:
    return rng.choice([other for other in LETTERS if other != letter])


def _rows(
    kind: Kind,
    scene: Scene,
    image: ImageRef,
    directory: Path,
    rng: random.Random,
    sloppiness: float,
    flawed: float,
) -> Iterator[dict[str, Any]]:
    """The rows of one scene: one a marker, or one for the whole scene."""
    if kind == "list":
        answer = text_message("assistant", marker_list(scene, rng, sloppiness))
        yield {"messages": [_user(image, LIST_QUESTION), answer], "ground_truth": None}
        return
    markers = [rng.choice(scene.markers)] if kind in ("direct", "question") else scene.markers
    for marker in markers:
        if kind == "locate":
            asked = _user(image, f"Where is the {marker.colour} marker?")
            box = _located(marker, sloppy_box(marker, rng, sloppiness))
            yield {"messages": [asked, text_message("assistant", box)], "ground_truth": None}
            continue
        asked, letter = _user(image, question(marker.colour)), marker.letter
        row: dict[str, Any] = {"messages": [asked], "ground_truth": letter}
        row |= {"box": [round(edge) for edge in marker.box()], "target_tool_calls": 1}
        if kind in ("zoom", "read"):
            box = sloppy_box(marker, rng, sloppiness)
            crop, observation = _looked(image, marker, box, directory)
            call = text_message("assistant", zoom_call(marker.colour, box))
            answer = text_message("assistant", letter)
            dialogue = (
                [asked, call, observation] if kind == "zoom" else [_user(crop, question(marker.colour))]
            )
            row["messages"] = [*dialogue, answer]
        elif kind == "direct":
            row["messages"].append(text_message("assistant", letter))
        elif kind == "prompt":
            yield row
            exact = sloppy_box(marker, rng, 0.0)
            row = row | {"messages": [asked, *_dialogue(image, marker, exact, letter, directory)[:2]]}
        elif kind == "thinking":
            flaw = rng.choice(FLAWS) if rng.random() < flawed else ""
            said = _other_letter(letter, rng) if flaw == "wrong answer" else letter
            box = sloppy_box(marker, rng, sloppiness)
            row["messages"] += _dialogue(image, marker, box, said, directory, flaw)
        elif kind == "pairs":
            exact, careless = sloppy_box(marker, rng, 0.0), sloppy_box(marker, rng, sloppiness)
            if careless == exact:
                continue
            row["chosen"] = _dialogue(image, marker, exact, letter, directory, "no thinking")
            row["rejected"] = _dialogue(image, marker, careless, letter, directory, "no thinking")
        yield row


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
    """Write `count` scenes' rows to `directory/data.jsonl` and their images beside it.

    Args:
        directory: An existing, empty folder.
        kind: `zoom` (two-turn dialogues with the tool), `list` (name and locate every marker),
            `locate` (one marker's box), `read` (the question asked of a crop), `direct` (answered at
            once), `question` (a prompt with its ground truth, for RL), `thinking` (as `zoom`, but each
            turn thinks first: where is it, what does it say), `prompt` (what comes before each turn of
            a `thinking` dialogue, for a teacher) or `pairs` (a `thinking` answer with an exact box,
            preferred to the same with a careless one).
        split: Which stream of scenes to draw from.
        count: Number of scenes; all kinds but `list`, `direct` and `question` give a row for every marker.
        seed: Seed of the stream.
        sloppiness: How careless the demonstrated boxes are, from 0 to 1; of `pairs` those that lose.
        flawed: Share of `thinking` dialogues that have one of FLAWS, as a model's own answers would.
    """
    images = directory / "images"
    images.mkdir()
    rng = random.Random(f"marker-rows/{kind}/{split}/{seed}")
    scenes = scene_stream(split, seed)
    with (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            scene = next(scenes)
            digest, png = _drawn(scene)
            image = save_png(lambda png=png: png, digest, images)
            for index, row in enumerate(_rows(kind, scene, image, images, rng, sloppiness, flawed)):
                for turns in {"messages", "chosen", "rejected"} & row.keys():
                    row[turns] = [_relative(message_to_json(message), directory) for message in row[turns]]
                first = {"id": f"{split}-{kind}-{number}-{index}", "messages": row.pop("messages")}
                first["tools"] = [TOOL] if kind in WITH_TOOL else []
                file.write(json.dumps(first | row) + "\n")


@functools.lru_cache(maxsize=1024)
def _drawn(scene: Scene) -> tuple[str, bytes]:
    """Pixel hash and PNG of a scene, which the kinds of a split have in common: about 10 KB each."""
    image = scene.draw()
    return pixel_hash(image), encode_png(image)


def _relative(message: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Paths relative to the JSONL's folder, so that the folder can be moved."""
    for block in message["content"]:
        if block["type"] == "image":
            block["image"] = str(Path(block["image"]).relative_to(directory))
    return message
