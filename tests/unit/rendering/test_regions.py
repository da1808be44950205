"""Names and boxes of a row's objects, as each family writes them."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.config import DatasetConfig
from posttrain.data.formats import DataError, canonical_row, read_canonical, sample_of, write_canonical
from posttrain.data.sources import load_samples
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.rendered import RenderError
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.row_checks import RenderCheck
from posttrain.types import FAMILY_FRAMES, Box, Family, Sample

WIDTH, HEIGHT = 300, 200
ASK = {"role": "user", "content": "<image>Where is the <ref-object>?"}
SAY = {"role": "assistant", "content": "It is at <bbox>."}


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Renderer]:
    found: dict[Family, Renderer] = {}
    for family in FAMILY_FRAMES:
        folder = tmp_path_factory.mktemp(family)
        build_tiny(family, folder, seed=0)
        found[family] = Renderer.from_pretrained(folder, family)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(folder / "a.png")
    Image.new("RGB", (2 * WIDTH, HEIGHT), "red").save(folder / "b.png")
    turned = Image.new("RGB", (HEIGHT, WIDTH), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    return folder


def read(folder: Path, objects: Any, *turns: dict[str, Any], images: Any = ("a.png",)) -> Sample:
    row = {"messages": list(turns or (ASK, SAY)), "images": list(images), "objects": objects}
    return sample_of({"id": "1"} | canonical_row(row, "ms_swift"), folder)


def said(renderer: Renderer, sample: Sample) -> tuple[str, str]:
    """What the user and the assistant say."""
    ids = renderer.counting().render(sample.messages).token_ids
    text = renderer.tokenizer.decode(ids, skip_special_tokens=False)
    user, assistant = re.findall(r"<\|im_start\|>(?:user|assistant)\n(.*?)<\|im_end\|>", text, re.DOTALL)
    return user.partition("<|vision_end|>")[2], assistant


def resized(renderer: Renderer, path: Path) -> tuple[int, int]:
    """The size that an image has for the model, by the grid of its patches."""
    processor: Any = renderer.processor.image_processor
    grid = processor(Image.open(path).convert("RGB"), return_tensors="pt")["image_grid_thw"][0]
    return int(grid[2]) * processor.patch_size, int(grid[1]) * processor.patch_size


def test_every_family_writes_its_own(renderers: dict[Family, Renderer], folder: Path):
    sample = read(folder, {"ref": ["mug"], "bbox": [[30, 25, 150.5, 190]]})
    width, height = resized(renderers["qwen2_5_vl"], folder / "a.png")
    pixels = [round(30 / 300 * width), round(25 / 200 * height)]
    pixels += [round(150.5 / 300 * width), round(190 / 200 * height)]
    assert said(renderers["qwen3_vl"], sample) == ("Where is the mug?", "It is at [100, 125, 502, 950].")
    assert said(renderers["qwen2_5_vl"], sample) == ("Where is the mug?", f"It is at {pixels}.")
    assert said(renderers["qwen2_vl"], sample) == (
        "Where is the <|object_ref_start|>mug<|object_ref_end|>?",
        "It is at <|box_start|>(100,125),(502,950)<|box_end|>.",
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.sampled_from(["real", "norm1", "norm1000"]),
    st.sampled_from([0, 1]),
    st.sampled_from(list(FAMILY_FRAMES)),
)
def test_boxes_in_every_frame_of_every_image(
    renderers: dict[Family, Renderer],
    folder: Path,
    parts: list[float],
    kind: str,
    number: int,
    family: Family,
):
    size = [(WIDTH, HEIGHT), (2 * WIDTH, HEIGHT)][number]
    x1, x2 = sorted(parts[:2])
    y1, y2 = sorted(parts[2:])
    scale = {"real": size, "norm1": (1, 1), "norm1000": (1000, 1000)}[kind]
    box = [x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1]]
    objects = {"bbox": [box], "bbox_type": kind, "image_id": [number]}
    turns = {"role": "user", "content": "<image><image>Where?"}, SAY
    _, answer = said(renderers[family], read(folder, objects, *turns, images=("a.png", "b.png")))
    shown = resized(renderers[family], folder / ("a.png", "b.png")[number])
    contract = Box(*box, frame="pixel_original") if kind == "real" else None
    contract = contract or Box(x1 * 1000, y1 * 1000, x2 * 1000, y2 * 1000, "norm_1000")
    wanted = contract.to(FAMILY_FRAMES[family], original=size, resized=shown)
    numbers = [int(found) for found in re.findall(r"\d+", answer)]
    assert numbers == pytest.approx([wanted.x1, wanted.y1, wanted.x2, wanted.y2], abs=0.51)


@pytest.mark.parametrize("family", list(FAMILY_FRAMES))
@pytest.mark.parametrize(
    ("box", "bbox_type", "reason"),
    [
        ([12, 8, 400, 60], "real", "leaves its image of 300×200"),
        ([100, 125, 502, 950], "real", "objects.bbox_type"),
        ([-40, 8, 100, 60], "real", "leaves its image"),
        ([400, 8], "real", "leaves its image"),
        ([0.1, 0.2, 3, 0.4], "norm1", "leaves its image"),
        ([10, 20, 30, 2000], "norm1000", "leaves its image"),
        ([200, 8, 60, 100], "real", "ends before it begins"),
        ([20, 80, 60, 30], "norm1000", "ends before it begins"),
    ],
)
def test_boxes_that_are_none_of_their_image(
    renderers: dict[Family, Renderer], folder: Path, box: Any, bbox_type: str, reason: str, family: Family
):
    sample = read(folder, {"ref": ["mug"], "bbox": [box], "bbox_type": bbox_type})
    with pytest.raises(ValueError, match=reason):
        RenderCheck(renderers[family], None)(sample)


@pytest.mark.parametrize("box", [[0, 0, 300, 200], [-2, -1, 303, 204], [30, 25, 30, 25], [300, 200]])
def test_boxes_at_the_edge_are_shown(renderers: dict[Family, Renderer], folder: Path, box: Any):
    RenderCheck(renderers["qwen3_vl"], None)(read(folder, {"ref": ["mug"], "bbox": [box]}))


def test_points_and_turned_photos(renderers: dict[Family, Renderer], folder: Path):
    sample = read(folder, {"ref": ["mug"], "bbox": [[150, 50]]}, images=["turned.jpg"])
    assert said(renderers["qwen3_vl"], sample)[1] == "It is at [500, 250]."
    assert said(renderers["qwen2_vl"], sample)[1] == "It is at <|box_start|>(500,250)<|box_end|>."


@pytest.mark.parametrize("objects", [{}, None, "", {"ref": [], "bbox": []}, {"ref": None}, '{"ref": []}'])
def test_objects_without_any_change_nothing(folder: Path, objects: Any):
    turns = {"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A mug."}
    assert read(folder, objects, *turns) == read(folder, None, *turns)


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ({"ref": ["mug"]}, "lists 0 of what <bbox>"),
        ({"ref": ["mug", "cup"], "bbox": [[1, 2, 3, 4]]}, "lists 2 of what <ref-object>"),
        ({"ref": ["mug"], "bbox": [[1, 2, 3]]}, "a box is"),
        ({"ref": ["mug"], "bbox": [[1, 2, 3, "4"]]}, "a box is"),
        ({"ref": ["mug"], "bbox": [[1, 2, 3, True]]}, "a box is"),
        ({"ref": ["mug"], "bbox": [[1, 2, 3, 4]], "bbox_type": "xywh"}, "bbox_type"),
        ({"ref": ["mug"], "bbox": [[1, 2, 3, 4]], "image_id": [1]}, "image_id"),
        ({"ref": ["mug"], "bbox": [[1, 2, 3, 4]], "image_id": [0, 0]}, "image_id"),
        ({"ref": ["mug"], "bbox": [[1, 2, 3, 4]], "width": [9]}, "'width'"),
        ({"ref": [7], "bbox": [[1, 2, 3, 4]]}, "ref must be"),
        ([1], "objects"),
        ("{", "objects"),
    ],
)
def test_objects_that_do_not_fit(folder: Path, objects: Any, reason: str):
    with pytest.raises(DataError, match=reason):
        read(folder, objects)


@pytest.mark.parametrize("family", FAMILY_FRAMES)
def test_a_name_cannot_speak_for_somebody_else(
    renderers: dict[Family, Renderer], folder: Path, family: Family
):
    sample = read(folder, {"ref": ["mug<|im_end|>"], "bbox": [[1, 2, 3, 4]]})
    with pytest.raises(RenderError, match="control token"):
        renderers[family].render(sample.messages)


def test_a_rejected_reply_has_no_objects_of_its_own():
    row: dict[str, Any] = {
        "messages": [ASK, SAY],
        "images": ["a.png"],
        "objects": {"ref": ["mug"], "bbox": [[1, 2, 3, 4]]},
    }
    row["rejected_response"] = "Nowhere."
    assert canonical_row(row, "ms_swift")["rejected"]
    row["rejected_response"] = "At <bbox>."
    with pytest.raises(DataError, match="the rejected reply has <bbox>"):
        canonical_row(row, "ms_swift")


def test_boxes_of_a_picture_that_the_row_holds(
    renderers: dict[Family, Renderer], folder: Path, tmp_path: Path
):
    held = "data:image/png;base64," + base64.b64encode((folder / "a.png").read_bytes()).decode()
    row = {"messages": [ASK, SAY], "images": [held], "objects": {"ref": ["mug"], "bbox": [[30, 25, 150, 50]]}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    fixed = {"name": "rows", "description": "Rows.", "licence": "CC0-1.0", "format": "ms_swift"}
    config = DatasetConfig.model_validate(fixed | {"source": {"path": str(tmp_path / "rows.jsonl")}})
    sample = load_samples(config, tmp_path, tmp_path / "c")[0]
    assert said(renderers["qwen3_vl"], sample)[1] == "It is at [100, 125, 500, 250]."


def test_regions_survive_a_conversion(folder: Path):
    sample = read(folder, {"ref": ["mug"], "bbox": [[30, 25, 150.5, 190]]})
    write_canonical([sample], folder / "out.jsonl")
    assert list(read_canonical(folder / "out.jsonl")) == [sample]
    written = json.loads((folder / "out.jsonl").read_text())
    assert written["messages"][1]["content"][1]["image"] == "a.png"
    point = read(folder, {"ref": ["mug"], "bbox": [[30, 25]]})
    write_canonical([point], folder / "out.jsonl")
    assert list(read_canonical(folder / "out.jsonl")) == [point]
