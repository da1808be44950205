import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data import marker_scenes
from posttrain.data.dense_views import IGNORED, NO_MARKER, dense_views
from posttrain.data.formats import read_canonical
from posttrain.images import open_image
from tools_env.hermes import parse_calls


def scenes(split: str, seed: int, count: int) -> list[marker_scenes.Scene]:
    return list(itertools.islice(marker_scenes.scene_stream(split, seed), count))  # pyright: ignore


def test_splits_and_seeds_share_no_scene():
    seen = [set(scenes(split, seed, 200)) for split in marker_scenes.SPLIT_STREAMS for seed in (0, 1)]
    assert all(not a & b for a, b in itertools.combinations(seen, 2))
    assert scenes("test", 0, 5) == scenes("test", 0, 5)


@pytest.mark.parametrize("kind", ["zoom", "list", "locate", "read", "direct", "question"])
def test_rows_are_canonical(tmp_path: Path, kind: marker_scenes.Kind):
    marker_scenes.write(tmp_path, kind=kind, split="sft", count=3, seed=1, sloppiness=0.5)
    samples = list(read_canonical(tmp_path / "data.jsonl"))
    assert len({sample.id for sample in samples}) == len(samples) >= 3
    for sample in samples:
        for message in sample.messages:
            for image in message.images:
                assert open_image(image.path).size[0] <= marker_scenes.SCENE_SIZE
        assert (sample.messages[-1].role == "user") == (kind == "question")
        if kind in ("zoom", "read", "direct", "question"):
            assert sample.ground_truth in marker_scenes.LETTERS


def test_a_demonstrated_call_is_one_that_the_environment_would_run(tmp_path: Path):
    marker_scenes.write(tmp_path, kind="zoom", split="sft", count=5, sloppiness=1.0)
    for sample in read_canonical(tmp_path / "data.jsonl"):
        [call] = parse_calls(sample.messages[1].text)
        assert call.error == ""
        assert call.name == "image_zoom_in_tool"
        assert sample.messages[3].text == sample.ground_truth


@given(seed=st.integers(0, 10**6), sloppiness=st.floats(0, 1))
def test_boxes_lie_on_the_grid_and_are_never_empty(seed: int, sloppiness: float):
    rng = random.Random(seed)
    scene = marker_scenes.random_scene(rng)
    for marker in scene.markers:
        x1, y1, x2, y2 = marker_scenes.sloppy_box(marker, rng, sloppiness)
        assert 0 <= x1 < x2 <= 1000
        assert 0 <= y1 < y2 <= 1000
        assert all(v % marker_scenes.COORDINATE_STEP == 0 for v in (x1, y1, x2, y2))
        if sloppiness == 0:
            left, top, right, bottom = marker.box()
            assert x1 - 40 <= left
            assert x2 + 40 >= right
            assert y1 - 40 <= top
            assert y2 + 40 >= bottom


def test_the_list_names_every_marker_where_it_is():
    [scene] = scenes("test", 3, 1)
    listed = json.loads(marker_scenes.marker_list(scene, random.Random(0), 0.0))
    assert [entry["label"] for entry in listed] == sorted(marker.colour for marker in scene.markers)


def test_dense_labels_leave_illegible_letters_out():
    views = dense_views(20, seed=5)
    assert len(views.images) == len(views.colours) == 20 * 7
    whole = slice(None, None, 7)
    assert (views.letters[whole] == IGNORED).all()  # nothing can be read without zooming in
    assert (views.letters != IGNORED).any()
    marked = views.colours != NO_MARKER
    assert (marked == (views.boxes[..., 0] != IGNORED)).all()
    assert (views.boxes[marked] >= 0).all()
