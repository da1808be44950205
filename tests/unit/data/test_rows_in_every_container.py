"""The same row means the same in every container, and so does an image in every embedding."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.data import containers
from posttrain.data.formats import DataError, canonical
from posttrain.data.prepared import first_rows
from posttrain.data.sources import load_samples
from posttrain.types import Sample
from tests.unit.data.test_formats_in_containers import configured, stored
from tests.unit.data.test_formats_of_others import encoded
from tests.unit.data.test_formats_of_others import folder as folder
from tests.unit.data.test_unread_keys import ASK, SAY, talk

CONTAINERS = ("jsonl", "json", "parquet", "arrow")
SHOWN = {"role": "user", "content": "<image>What?"}


def loaded(folder: Path, container: str, rows: list[dict[str, Any]], format_name: str, **options: Any) -> Any:
    """The samples without their ids, or why there are none."""
    path = stored(folder, container, rows)
    config = configured(path, format_name, source={"images": str(folder)}, **options)
    try:
        dataset = load_samples(config, folder, folder / "c")
    except DataError as error:
        return str(error).rpartition(":1: ")[2]
    return [dataset[index].messages for index in range(len(dataset))]


def colour(sample: Sample) -> Any:
    with Image.open(sample.messages[0].images[0].path) as found:
        return found.convert("RGB").resize((1, 1)).getpixel((0, 0))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def saved(kind: str, **options: Any) -> bytes:
    image = Image.new("RGB", (16, 16), "blue")
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


#: A blue picture, as rows hold it.
HELD: dict[str, Callable[[bytes], Any]] = {
    "url": lambda data: f"data:image/png;base64,{b64(data)}",
    "charset": lambda data: f"data:image/png;charset=utf-8;base64,{b64(data)}",
    "upper": lambda data: f"DATA:image/PNG;BASE64,{b64(data)}",
    "no type": lambda data: f"data:;base64,{b64(data)}",
    "octets": lambda data: f"data:application/octet-stream;base64,{b64(data)}",
    "lines": lambda data: "data:image/png;base64," + base64.encodebytes(data).decode(),
    "windows lines": lambda data: (
        "data:image/png;base64," + base64.encodebytes(data).decode().replace("\n", "\r\n")
    ),
    "unpadded": lambda data: f"data:image/png;base64,{b64(data).rstrip('=')}",
    "url-safe": lambda data: f"data:image/png;base64,{base64.urlsafe_b64encode(data).decode()}",
    "escaped": lambda data: f"data:image/png;base64,{quote(b64(data))}",
    "raw": b64,
    "raw lines": lambda data: base64.encodebytes(data).decode(),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", HELD)
@pytest.mark.parametrize("format_name", ["canonical", "ms_swift"])
def test_pictures_in_texts(folder: Path, container: str, form: str, format_name: str):
    rows = [talk(SHOWN, SAY, images=[HELD[form](saved("PNG"))])]
    config = configured(stored(folder, container, rows), format_name)
    dataset = load_samples(config, folder, folder / "c")
    assert colour(dataset[0]) == (0, 0, 255)
    assert colour(load_samples(config, folder, folder / "c", look_again=False)[0]) == (0, 0, 255)
    (row,) = first_rows(config, 5)
    assert row.error == ""


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (saved("JPEG"), ".jpeg"),
        (saved("MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))]), ".jpg"),
        (saved("BMP"), ".bmp"),
        (saved("GIF"), ".gif"),
        (saved("WEBP", lossless=True), ".webp"),
        (saved("TIFF"), ".tiff"),
    ],
    ids=["jpeg", "mpo", "bmp", "gif", "webp", "tiff"],
)
@pytest.mark.parametrize("form", ["bytes", "url", "raw"])
def test_formats_of_pictures(folder: Path, data: bytes, ending: str, form: str):
    held = {"bytes": data, "path": None} if form == "bytes" else HELD[form](data)
    container = "parquet" if form == "bytes" else "jsonl"
    path = stored(folder, container, [talk(SHOWN, SAY, images=[held])])
    dataset = load_samples(configured(path, "canonical"), folder, folder / "c")
    assert Path(dataset[0].messages[0].images[0].path).suffix == ending
    assert colour(dataset[0])[2] > 200


@pytest.mark.parametrize("container", ["jsonl", "json"])
def test_one_row_that_holds_its_picture_among_many(folder: Path, container: str):
    rows = [talk(SHOWN, SAY, images=["a.png"]) for _ in range(150)]
    rows[77]["images"] = [HELD["url"](encoded("blue"))]
    config = configured(stored(folder, container, rows), "canonical")
    dataset = load_samples(config, folder, folder / "c")
    assert len(dataset) == 150
    assert [colour(dataset[n]) for n in (76, 77, 78)] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


@pytest.mark.parametrize("container", CONTAINERS)
def test_frames_that_rows_hold(folder: Path, container: str):
    frames = [HELD["url"](encoded(name)) for name in ("red", "green", "blue", "white")]
    asked = {"role": "user", "content": "<video>What?"}
    for format_name in ("canonical", "openai"):
        path = stored(folder, container, [talk(asked, SAY, videos=[frames])])
        dataset = load_samples(configured(path, format_name), folder, folder / "c")
        assert len(dataset[0].messages[0].videos[0].paths) == 4


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("format_name", ["canonical", "ms_swift"])
def test_how_large_a_row_may_be(
    folder: Path, container: str, format_name: str, monkeypatch: pytest.MonkeyPatch
):
    noise = Image.effect_noise((300, 300), 90)
    noise.save(buffer := io.BytesIO(), "PNG")
    monkeypatch.setattr(canonical, "MAX_ROW_BYTES", 20_000)
    rows = [talk(SHOWN, SAY, images=[HELD["url"](buffer.getvalue())])]
    assert len(json.dumps(rows)) > 60_000
    dataset = load_samples(configured(stored(folder, container, rows), format_name), folder, folder / "c")
    assert len(dataset) == 1
    long = [talk(ASK, SAY | {"content": "word " * 10_000})]
    with pytest.raises(DataError, match="longer than 20,000 bytes"):
        load_samples(
            configured(stored(folder / "images", container, long), format_name), folder, folder / "d"
        )


@pytest.fixture(autouse=True)
def images(folder: Path) -> None:
    (folder / "images").mkdir()


@pytest.mark.parametrize("container", ["jsonl", "json"])
def test_a_text_without_an_end_is_bounded(folder: Path, container: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(containers, "MAX_TEXT_BYTES", 30_000)
    monkeypatch.setattr(containers, "_CHUNK", 1000)
    path = stored(folder, container, [talk(ASK, SAY | {"content": "word " * 10_000})])
    with pytest.raises(DataError, match=r"longer than 30,000|no JSON list"):
        load_samples(configured(path, "openai"), folder, folder / "c")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("format_name", ["canonical", "openai"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_byte_order_mark_costs_no_row(folder: Path, ending: str, format_name: str, name: str):
    lines = "".join(json.dumps(talk(ASK, SAY | {"content": f"é{n}"})) + ending for n in range(3))
    (folder / name).write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\xef\xbb\xbf" + lines.encode())
    dataset = load_samples(configured(folder / name, format_name), folder, folder / "c", max_bad_share=0.0)
    assert [dataset[n].messages[1].text for n in range(6)] == ["é0", "é1", "é2"] * 2


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (json.dumps({"data": [talk(ASK, SAY)]}), "under the key 'data'"),
        (json.dumps({"data": [talk(ASK, SAY)]}, indent=1), "one object, with the keys 'data'"),
        (json.dumps({"version": 1, "rows": [{"conversations": []}]}), "under the key 'rows'"),
        (json.dumps(talk(ASK, SAY), indent=2), "one object, with the keys 'messages'"),
        (json.dumps({"messages": {"0": [ASK]}}, indent=2), "one object"),
    ],
)
def test_a_file_that_is_one_object(folder: Path, written: str, said: str):
    (folder / "rows.json").write_text(written)
    with pytest.raises(DataError, match="one list") as error:
        load_samples(configured(folder / "rows.json", "openai"), folder, folder / "c")
    assert said in str(error.value)
    assert "rows are broken" not in str(error.value)


def test_one_row_on_one_line_is_a_row(folder: Path):
    (folder / "rows.json").write_text(json.dumps(talk(ASK, SAY)) + "\n")
    assert len(load_samples(configured(folder / "rows.json", "openai"), folder, folder / "c")) == 1


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("row", "format_name"),
    [
        ({"messages": json.dumps([SHOWN, SAY]), "images": ["a.png"]}, "canonical"),
        ({"messages": json.dumps([SHOWN, SAY]), "images": ["a.png"]}, "openai"),
        ({"messages": json.dumps([SHOWN, SAY]), "images": '["a.png"]'}, "ms_swift"),
        ({"prompt": json.dumps([SHOWN]), "completion": json.dumps([SAY]), "image": "a.png"}, "trl"),
        (
            {
                "conversations": json.dumps(
                    [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Nine miles."}]
                ),
                "images": ["a.png"],
            },
            "sharegpt",
        ),
    ],
)
def test_columns_that_are_json_in_a_text(folder: Path, container: str, row: dict[str, Any], format_name: str):
    (messages,) = loaded(folder, container, [row], format_name)
    assert [message.text for message in messages] == ["What?", "Nine miles."]
    assert len(messages[0].images) == 1


PART = st.sampled_from(["<image>", "What? ", "é", " ", ""])
TURN = st.tuples(st.lists(PART, max_size=3).map("".join), st.sampled_from(["A", "", "<image>", " \n"]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(TURN, min_size=1, max_size=2),
    st.lists(st.sampled_from(["a.png", "none.png", HELD["lines"](encoded("red"))]), max_size=2),
    st.sampled_from(["canonical", "openai", "trl", "ms_swift"]),
    st.sampled_from([{}, {"note": 1}, {"picture": "x.png"}, {"system": "S"}, {"train": True}]),
)
def test_any_row_gets_the_same_verdict_everywhere(
    tmp_path_factory: pytest.TempPathFactory,
    folder: Path,
    turns: list[tuple[str, str]],
    images: list[str],
    format_name: str,
    columns: dict[str, Any],
):
    messages = [
        {"role": role, "content": text}
        for asked, said in turns
        for role, text in (("user", asked), ("assistant", said))
    ]
    row = {"messages": messages, "images": images} | columns
    found = []
    for container in CONTAINERS:
        place = tmp_path_factory.mktemp("rows")
        (place / "a.png").write_bytes(encoded("red"))
        verdict = loaded(place, container, [row], format_name)
        found.append(verdict if isinstance(verdict, str) else len(verdict[0]))
    places = [str(each).partition("/rows")[0] for each in found]
    assert len(set(places)) == 1, found


@pytest.mark.parametrize("container", CONTAINERS)
def test_ids_of_others_may_repeat(folder: Path, container: str):
    row = {"id": "7", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    rows = [row, row, row | {"id": "8"}, row]
    config = configured(stored(folder, container, rows), "sharegpt")
    dataset = load_samples(config, folder, folder / "c", max_bad_share=0.0)
    assert len({dataset[n].id for n in range(4)}) == 4
    assert (dataset[0].id, dataset[2].id) == ("7", "8")
    assert len({row.sample.id for row in first_rows(config, 9) if row.sample}) == 4
