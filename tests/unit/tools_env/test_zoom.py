import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.media.images import check_size, open_image, save_image
from posttrain.types import ImageRef
from tools_env import ImageZoomIn, ToolError


@pytest.fixture
def scene(tmp_path: Path) -> ImageRef:
    """400×200; the red of a pixel tells its column, the green its row."""
    image = Image.new("RGB", (400, 200))
    image.putdata([(x % 256, y, x // 256) for y in range(200) for x in range(400)])
    return save_image(image, tmp_path)


def zoom(box: list, images: list[ImageRef], img_idx: float = 0, **options) -> Image.Image:
    result = ImageZoomIn(**options)({"bbox_2d": box, "label": "marker", "img_idx": img_idx}, images)
    assert result.text == f"Image {len(images)}"
    (crop,) = result.images
    return crop


def corner(crop: Image.Image) -> tuple[int, int]:
    """The column and row of the scene that the crop's first pixel comes from."""
    red, green, blue = crop.getpixel((0, 0))  # pyright: ignore[reportGeneralTypeIssues]
    return red + 256 * blue, green


def test_the_crop_is_the_files_own_pixels(scene: ImageRef):
    crop = zoom([100, 500, 350, 1000], [scene])
    assert crop.size == (100, 100)
    assert corner(crop) == (40, 100)


def test_boxes_in_pixels(scene: ImageRef):
    crop = zoom([40, 100, 140, 200], [scene], frame="pixel_original")
    assert (crop.size, corner(crop)) == ((100, 100), (40, 100))


def test_boxes_are_clamped(scene: ImageRef):
    assert zoom([-1000, -1e300, 1e300, 10**299], [scene]).size == (400, 200)


def test_an_earlier_crop_can_be_zoomed_again(scene: ImageRef, tmp_path: Path):
    first = save_image(zoom([0, 0, 500, 1000], [scene]), tmp_path)
    second = zoom([500, 500, 1000, 1000], [scene, first], img_idx=1.0)
    assert (second.size, corner(second)) == ((100, 100), (100, 100))


@pytest.mark.parametrize(
    ("box", "place"),
    [([500, 500, 501, 501], (184, 84)), ([0, 0, 1, 1], (0, 0)), ([999, 999, 1000, 1000], (368, 168))],
)
def test_tiny_boxes_grow_around_their_centre(scene: ImageRef, box: list, place: tuple[int, int]):
    crop = zoom(box, [scene], min_side=32)
    assert (crop.size, corner(crop)) == ((32, 32), place)


def test_a_box_cannot_outgrow_the_image(tmp_path: Path):
    small = save_image(Image.new("RGB", (20, 300)), tmp_path)
    assert zoom([0, 0, 10, 10], [small], min_side=32).size == (20, 32)


def test_a_strip_grows_until_a_processor_takes_it(tmp_path: Path):
    long = save_image(Image.new("RGB", (9000, 60)), tmp_path)
    check_size(zoom([0, 0, 1000, 1], [long], min_side=1).size)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([300, 100, 100, 300], "reversed"),
        ([100, 300, 300, 100], "reversed"),
        ([100, 100, 100, 300], "empty"),
        ([1200, 100, 1400, 300], "outside"),
        ([-50, -50, 0, 0], "outside"),
        ([math.nan, 0, 1, 1], "finite"),
        ([0, 0, math.inf, 1], "finite"),
    ],
)
def test_unusable_boxes_are_explained(scene: ImageRef, box: list, reason: str):
    with pytest.raises(ToolError, match=reason):
        zoom(box, [scene])


@pytest.mark.parametrize("index", [1, -1, 0.5, math.nan, math.inf, 10**300])
def test_there_is_no_such_image(scene: ImageRef, index: float):
    with pytest.raises(ToolError, match="1 images"):
        zoom([0, 0, 9, 9], [scene], img_idx=index)


def test_a_lost_file_is_not_named_to_the_model(tmp_path: Path):
    with pytest.raises(ToolError, match=r"^image 0 cannot be opened$"):
        zoom([0, 0, 9, 9], [ImageRef(str(tmp_path / "lost.png"))])


def test_options_are_checked():
    with pytest.raises(ValueError, match="frame 'percent'"):
        ImageZoomIn(frame="percent")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="min_side"):
        ImageZoomIn(min_side=0)


def test_the_schema_is_the_published_one():
    spec = ImageZoomIn().spec
    assert spec.name == "image_zoom_in_tool"
    assert spec.parameters["required"] == ["bbox_2d", "label", "img_idx"]
    assert {name: kind["type"] for name, kind in spec.parameters["properties"].items()} == {
        "bbox_2d": "array",
        "label": "string",
        "img_idx": "number",
    }


CORNER = st.floats(-200, 1200, allow_subnormal=False)
SPAN = st.tuples(CORNER, CORNER).map(sorted)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SPAN, SPAN, st.integers(1, 250))
def test_every_crop_covers_its_box_and_stays_inside(
    scene: ImageRef, across: list[float], down: list[float], min_side: int
) -> None:
    (x1, x2), (y1, y2) = across, down
    assume(x1 < x2 and y1 < y2 and x2 > 0 and y2 > 0 and x1 < 1000 and y1 < 1000)
    crop = zoom([x1, y1, x2, y2], [scene], min_side=min_side)
    left, top = corner(crop)
    assert crop.width >= min(min_side, 400)
    assert crop.height >= min(min_side, 200)
    assert left + crop.width <= 400
    assert top + crop.height <= 200
    assert left <= max(0, x1 * 0.4) + 1e-6
    assert top <= max(0, y1 * 0.2) + 1e-6
    assert left + crop.width >= min(400, x2 * 0.4) - 1e-6
    assert top + crop.height >= min(200, y2 * 0.2) - 1e-6


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were decoded."""
    names: list[str] = []
    begun = threading.Event()

    def slowly(path: str) -> Image.Image:
        names.append(Path(path).name)
        begun.wait(0.05)
        return open_image(path)

    monkeypatch.setattr("tools_env.zoom.open_image", slowly)
    return names


def test_a_file_is_decoded_once_for_all_threads_until_it_changes(scene: ImageRef, tmp_path: Path, opened):
    other = save_image(Image.new("RGB", (400, 200), "white"), tmp_path / "other")
    zoom_in = ImageZoomIn()

    def first_pixel(*images: ImageRef) -> tuple[int, int]:
        call = {"bbox_2d": [0, 0, 1000, 1000], "label": "marker", "img_idx": len(images) - 1}
        (crop,) = zoom_in(call, list(images)).images
        first = corner(crop)
        crop.paste("white", (0, 0, *crop.size))  # a crop is its own
        return first

    white = (255 + 256 * 255, 255)
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(first_pixel, [scene] * 8)) == {(0, 0)}
        assert set(threads.map(first_pixel, [scene] * 8, [other] * 8)) == {white}
    assert first_pixel(scene) == (0, 0)
    assert sorted(opened) == sorted([Path(scene.path).name, Path(other.path).name])
    Path(scene.path).write_bytes(Path(other.path).read_bytes())
    assert first_pixel(scene) == white
    Path(scene.path).write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(ToolError, match="cannot be opened"):
            first_pixel(scene)
    Path(scene.path).unlink()
    with pytest.raises(ToolError, match="cannot be opened"):
        first_pixel(scene)
    assert len(opened) == 5


def test_images_beyond_the_limit_are_dropped(scene: ImageRef, opened, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tools_env.zoom.MAX_KEPT_PIXELS", 400 * 200 - 1)
    zoom_in = ImageZoomIn()
    for _ in range(2):
        zoom_in({"bbox_2d": [0, 0, 1000, 1000], "label": "marker", "img_idx": 0}, [scene])
    assert len(opened) == 2


def test_it_is_announced_as_qwen_agents_tool_for_qwen3_vl():
    """Word for word what `qwen_agent/tools/image_zoom_in_qwen3vl.py` tells the model."""
    box = (
        "The bounding box of the region to zoom in, as [x1, y1, x2, y2], where (x1, y1) is the top-left "
        "corner and (x2, y2) is the bottom-right corner"
    )
    numbers = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
    described = {
        "bbox_2d": {**numbers, "description": box},
        "label": {
            "type": "string",
            "description": "The name or label of the object in the specified bounding box",
        },
        "img_idx": {"type": "number", "description": "The index of the zoomed-in image (starting from 0)"},
    }
    spec = ImageZoomIn().spec
    assert json.dumps(spec.parameters) == json.dumps(
        {"type": "object", "properties": described, "required": ["bbox_2d", "label", "img_idx"]}
    )
    assert spec.description == (
        "Zoom in on a specific region of an image by cropping it based on a bounding box (bbox) and an "
        "optional object label"
    )
    assert "in pixels" in str(ImageZoomIn("pixel_original").spec.parameters)
