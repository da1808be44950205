"""Where the images of rows are: links of users and of caches, paths that climb, and remedies."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.config import DatasetConfig
from posttrain.data.formats import DataError, image_path
from posttrain.data.formats.media_paths import media_path
from posttrain.data.prepared import first_rows
from posttrain.data.sources import load_samples
from posttrain.media.images import check_image
from posttrain.media.links import LinkError, follow
from posttrain.media.suffixes import FRAME_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES

DIGEST = hashlib.sha256(b"a").hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset's folder, with a folder of pictures beside it."""
    for place in ("rows/images", "pictures/deep"):
        (tmp_path / place).mkdir(parents=True)
    for place in ("rows/images/a.png", "pictures/a.png", "pictures/deep/b.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / place)
    return (tmp_path / "rows").resolve()


@pytest.mark.parametrize(
    ("link", "to", "written", "found"),
    [
        ("linked", "../pictures", "linked/a.png", "../pictures/a.png"),
        ("linked", "../pictures", "linked/deep/b.jpg", "../pictures/deep/b.jpg"),
        ("linked", "../pictures", "./linked/../linked/a.png", "../pictures/a.png"),
        ("linked", "../pictures", "linked/../images/a.png", "images/a.png"),
        ("c.png", "../pictures/a.png", "c.png", "../pictures/a.png"),
        ("c", "../pictures/a.png", "c", "../pictures/a.png"),
        ("c.JPG", "../pictures/a.png", "c.JPG", "../pictures/a.png"),
        ("images/b", "../../pictures/deep", "images/b/b.jpg", "../pictures/deep/b.jpg"),
    ],
)
def test_links_that_a_user_made_are_followed(folder: Path, link: str, to: str, written: str, found: str):
    (folder / link).symlink_to(to)
    assert image_path(written, folder) == (folder / found).resolve()


def test_rows_may_lie_in_a_linked_folder(folder: Path):
    (folder.parent / "other").symlink_to(folder)
    assert image_path("images/a.png", folder.parent / "other") == folder / "images" / "a.png"


@pytest.mark.parametrize(
    "store",
    [
        *("hub/datasets--o--n/blobs/x1", f"hub/datasets--o--n/blobs/{DIGEST}"),
        *(f"dvc/files/md5/{DIGEST[:2]}/{DIGEST[2:32]}", f"annex/SHA256-s81--{DIGEST}"),
    ],
)
@pytest.mark.parametrize(("name", "noun"), [("a.png", "image"), ("b.mp4", "video"), ("c.JPEG", "image")])
def test_contents_kept_under_their_hash_are_what_the_link_says(
    tmp_path: Path, store: str, name: str, noun: str
):
    blob = tmp_path / store
    blob.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(blob, format="PNG")
    folder = tmp_path / "hub" / "datasets--o--n" / "snapshots" / "abc"
    (folder / "media").mkdir(parents=True)
    (folder / "media" / name).symlink_to(os.path.relpath(blob, folder / "media"))
    suffixes = IMAGE_SUFFIXES if noun == "image" else VIDEO_SUFFIXES
    found = media_path(noun, f"media/{name}", folder, suffixes)
    assert found == folder.resolve() / "media" / name
    if noun == "image":
        check_image(found)


@pytest.mark.parametrize("target", ["/etc/passwd", "notes.txt", "blobs/secret", "secret"])
def test_a_link_may_not_say_another_kind_than_its_file(folder: Path, target: str):
    (folder / "blobs").mkdir()
    for name in ("notes.txt", "blobs/secret", "secret"):
        (folder / name).write_text("secret")
    (folder / "c.png").symlink_to(target)
    with pytest.raises(DataError, match=f"cannot be found: it is a link to {Path(target).name}"):
        image_path("c.png", folder)
    with pytest.raises(LinkError):
        follow(folder / "c.png", FRAME_SUFFIXES)


@pytest.mark.parametrize(
    ("written", "begin"),
    [
        ("../pictures/a.png", "."),
        ("../pictures/deep/b.jpg", "."),
        ("images/../../pictures/a.png", "."),
        ("./../pictures/a.png", "."),
        ("../nothing.png", "."),
        ("../../x/y.png", ".."),
    ],
)
def test_a_path_that_climbs_is_refused_with_a_remedy(folder: Path, written: str, begin: str):
    Image.new("RGB", (4, 4)).save(folder / "nothing.png")
    with pytest.raises(DataError, match=r"leads out of .*set source\.images") as refused:
        image_path(written, folder)
    assert f"images: {(folder.parent / begin).resolve()}}}" in str(refused.value)


@pytest.mark.parametrize(
    ("written", "hint"),
    [("images\\a.png", "there is images/a.png: write paths with /"), ("imgs/a.png", "source.images")],
)
def test_a_missing_image_is_named_with_what_may_be_meant(folder: Path, written: str, hint: str):
    with pytest.raises(DataError, match=hint):
        image_path(written, folder)


def picture_row(path: str, form: str) -> dict[str, Any]:
    video = form in ("film", "film object", "frames")
    kind = "video" if video else "image"
    told: Any = {"film object": {"video": path, "fps": 1.0}, "frames": [path, path], "object": {"path": path}}
    told = told.get(form, path)
    if form == "block":
        content: Any = [{"type": kind, "image": told}, {"type": "text", "text": "What?"}]
        return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A."}]}
    messages = [{"role": "user", "content": f"<{kind}>What?"}, {"role": "assistant", "content": "A."}]
    return {"messages": messages, f"{kind}s": [told]}


@pytest.mark.parametrize("images", ["{top}", "{top}/pictures"])
@pytest.mark.parametrize(
    ("form", "format_name"),
    [
        *(("list", "canonical"), ("block", "canonical"), ("film", "canonical"), ("frames", "canonical")),
        *(("object", "ms_swift"), ("block", "ms_swift"), ("film object", "ms_swift")),
    ],
)
@pytest.mark.parametrize("deep", ["ann", "ann/en/more"])
def test_source_images_is_a_remedy_for_paths_that_climb(
    tmp_path: Path, images: str, format_name: Any, form: str, deep: str, make_video: Any
):
    top = tmp_path / "top"
    (top / "pictures").mkdir(parents=True)
    (top / deep).mkdir(parents=True)
    shown = "film.mp4" if form.startswith("film") else "a.png"
    if form.startswith("film"):
        make_video(top / "pictures" / shown, 4)
    else:
        Image.new("RGB", (32, 32)).save(top / "pictures" / shown)
    climbing = "../" * (deep.count("/") + 1) + f"pictures/{shown}"
    (top / deep / "rows.jsonl").write_text(json.dumps(picture_row(climbing, form)) + "\n")
    config = {"name": "climbing", "description": "d", "licence": "CC0-1.0", "format": format_name}
    source: dict[str, Any] = {"path": str(top / deep / "rows.jsonl")}
    without = DatasetConfig.model_validate(config | {"source": source})
    with pytest.raises(DataError, match=f"source.images .*images: {top}}}"):
        load_samples(without, tmp_path, tmp_path / "cache")
    with_images = DatasetConfig.model_validate(
        config | {"source": source | {"images": images.format(top=top)}}
    )
    dataset = load_samples(with_images, tmp_path, tmp_path / "cache")
    media = [*dataset[0].messages[0].images, *dataset[0].messages[0].videos]
    assert media
    assert {path for each in media for path in getattr(each, "paths", None) or [each.path]} == {
        str(top / "pictures" / shown)
    }
    assert next(iter(first_rows(with_images, 1))).sample is not None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "images", "linked", "a.png", "deep", "", "a"]), max_size=7))
def test_what_is_found_lies_in_the_folder_or_where_its_links_lead(folder: Path, parts: list[str]):
    if not (folder / "linked").exists():
        (folder / "linked").symlink_to("../pictures")
    written = "/".join(parts).lstrip("/")
    try:
        found = image_path(written, folder)
    except DataError:
        return
    assert found.is_relative_to(folder) or found.is_relative_to(folder.parent / "pictures")
    assert found.suffix in IMAGE_SUFFIXES
    if found.is_relative_to(folder.parent / "pictures"):
        assert "linked" in parts
