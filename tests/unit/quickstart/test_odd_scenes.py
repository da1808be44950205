"""Pictures against expectation: what is asked of them is what the pixels show, and splits do not meet."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from posttrain.messages import message_from_json
from posttrain.quickstart import odd_scenes
from posttrain.quickstart.odd_scenes import Clock, Counted, draw_scene, scenes
from posttrain.types import RewardInput
from rewards.builtin.counting import counting
from rewards.builtin.puzzles import clock

SIDE = odd_scenes.SIDE


def some(kind: odd_scenes.Kind, count: int = 16) -> list[Any]:
    return list(itertools.islice(scenes(kind, "train", 3, 0.3, 1), count))


def upright(scene: Counted | Clock) -> Image.Image:
    """The picture as it was before it was mirrored and turned."""
    image = draw_scene(scene)
    if isinstance(scene, Clock) and scene.mirrored:
        image = ImageOps.mirror(image)
    return image.rotate(scene.turn, resample=Image.Resampling.BICUBIC)


def shown(image: Image.Image, x: float, y: float, ground: tuple[int, int, int]) -> bool:
    """Whether a place, in shares of the side, has another colour than the ground."""
    pixel = image.getpixel((round(x * SIDE), round(y * SIDE)))
    assert isinstance(pixel, tuple)
    return max(abs(a - b) for a, b in zip(pixel, ground, strict=True)) > 24


def runs(flags: list[bool]) -> int:
    return sum(key for key, _ in itertools.groupby(flags))


@pytest.mark.parametrize("kind", ["hand", "animal", "die"])
def test_the_pixels_show_the_number(kind: odd_scenes.Kind) -> None:
    for scene in some(kind):
        image, ground = upright(scene), (scene.ground,) * 3
        if kind == "hand":
            around = [math.radians(angle / 4) for angle in range(-4 * 88, 4 * 88)]
            ring = [(0.5 + 0.22 * math.sin(a), 0.62 - 0.22 * math.cos(a)) for a in around]
            found = runs([shown(image, x, y, ground) for x, y in ring])
        elif kind == "animal":
            found = runs([shown(image, x / SIDE, 0.75, ground) for x in range(30, 225)])
        else:
            white = (255, 255, 255)
            cells = itertools.product((0.32, 0.5, 0.68), repeat=2)
            found = sum(shown(image, x, y, white) for x, y in cells)
        assert found == scene.number, scene


def test_the_hands_of_clocks_show_the_time() -> None:
    kinds = set()
    for scene in some("clock", 30):
        image = upright(scene)
        kinds.add((scene.numerals, scene.turn != 0, scene.mirrored))

        def coloured(angle: float, radius: float, scene: Clock = scene, image: Image.Image = image) -> bool:
            radians = math.radians(angle)
            x, y = 0.5 + radius * math.sin(radians), 0.5 - radius * math.cos(radians)
            pixel = image.getpixel((round(x * SIDE), round(y * SIDE)))
            assert isinstance(pixel, tuple)
            wanted = odd_scenes.COLOURS[scene.colour]
            return max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) < 60

        minute_hand = [angle for angle in range(0, 360, 3) if coloured(angle, 0.27)]
        assert minute_hand, scene
        assert min(abs((angle - 6 * scene.minute + 180) % 360 - 180) for angle in minute_hand) <= 3
        assert coloured(30 * scene.hour + scene.minute / 2, 0.16), scene
        assert (
            not coloured(30 * scene.hour + scene.minute / 2 + 180, 0.16)
            or abs((30 * scene.hour + scene.minute / 2 + 180 - 6 * scene.minute + 180) % 360 - 180) < 12
        )
    assert len(kinds) >= 6


def rows(folder: Path, **params: Any) -> list[dict[str, Any]]:
    folder.mkdir()
    odd_scenes.write(folder, **params)
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["hand", "animal", "die", "clock"])
def test_the_demonstrated_answer_earns_full_marks(kind: odd_scenes.Kind, tmp_path: Path) -> None:
    found = rows(tmp_path / "a", kind=kind, split="train", count=14, answered=True, ordinary=0.5)
    assert 2 <= sum(row["ordinary"] for row in found) <= 12
    for row in found:
        asked, answered = (message_from_json(turn) for turn in row["messages"])
        x = RewardInput((asked,), (answered,), answered.text, row["ground_truth"])
        score = (clock if kind == "clock" else counting)(x)
        assert score is not None
        assert score.value == 1
        with Image.open(tmp_path / "a" / asked.images[0].path) as image:
            assert image.size == (SIDE, SIDE)
        assert answered.text not in asked.text


def test_rows_repeat_and_splits_do_not_meet(tmp_path: Path) -> None:
    params: dict[str, Any] = {"kind": "clock", "count": 20, "minute_step": 15}
    one, same = (rows(tmp_path / name, split="train", **params) for name in ("a", "b"))
    assert one == same
    held_out = rows(tmp_path / "c", split="test", seed=7, **params)
    known = {row["scene"] for row in one + rows(tmp_path / "d", split="train", seed=7, **params)}
    assert not known & {row["scene"] for row in held_out}
    assert all(turn["role"] != "assistant" for row in one for turn in row["messages"])


@pytest.mark.parametrize(
    "wrong", [{"kind": "foot"}, {"split": "sft"}, {"ordinary": 1.5}, {"minute_step": 7}, {"minute_step": 0}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        odd_scenes.write(tmp_path, **({"kind": "die", "split": "train", "count": 1} | wrong))
