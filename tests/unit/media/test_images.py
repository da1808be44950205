"""Reading, checking and storing images, damaged and hostile ones included."""

import contextlib
import hashlib
import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.media.images import ImageError, check_image, check_size, open_image, pixel_hash, save_image


def noise(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    image = Image.effect_noise((width, height), 80)
    return image.convert(mode)


def png_header_only(width: int, height: int) -> bytes:
    """Make a PNG that claims a size and has no such pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PNG = encoded(noise(), "PNG")
BAD_FILES = {
    "huge.png": (png_header_only(50_000, 50_000), "pixels allowed"),
    "large.png": (png_header_only(10_000, 10_000), "pixels allowed"),
    "thin.png": (encoded(Image.new("RGB", (1, 20_000)), "PNG"), "times as long"),
    "truncated.jpg": (encoded(noise(), "JPEG")[:-600], "broken|truncated"),
    "truncated.png": (encoded(noise(), "PNG")[:-600], "broken|truncated"),
    "flipped.png": (PNG[:200] + bytes([PNG[200] ^ 1]) + PNG[201:], "broken|Truncated"),
    "missing-pixels.png": (png_header_only(64, 64)[:-30], "none of"),
    "empty.png": (b"", "none of"),
    "text.png": (b"hello", "none of"),
    "vector.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "none of"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of"),
    "float.tiff": (encoded(Image.new("F", (8, 8)), "TIFF"), "32 bits"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("read", [open_image, check_image])
def test_bad_files_are_refused_by_name(tmp_path: Path, name: str, read):
    content, reason = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


def test_special_files_are_refused_without_reading(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, Path("/dev/zero"), tmp_path / "none.png", "a\0b.png"):
        with pytest.raises(ImageError):
            open_image(path)


def test_a_limit_below_the_default(tmp_path: Path):
    noise(64, 48).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", max_pixels=64 * 48).size == (64, 48)
    with pytest.raises(ImageError, match="64×48 has more than the 3,071"):
        open_image(tmp_path / "a.png", max_pixels=64 * 48 - 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str):
    image = noise().convert(mode)
    image.save(tmp_path / "image.tiff")
    assert pixel_hash(open_image(tmp_path / "image.tiff")) == pixel_hash(image.convert("RGB"))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path):
    Image.new("I;16", (4, 4), 128 * 256).save(tmp_path / "grey.png")
    assert open_image(tmp_path / "grey.png").getpixel((0, 0)) == (128, 128, 128)


def test_transparency_becomes_white(tmp_path: Path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (4, 4), (0, 255)).save(tmp_path / "opaque.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert open_image(tmp_path / "opaque.png").getpixel((0, 0)) == (0, 0, 0)


def test_exif_orientation_is_applied_and_damage_ignored(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(64, 48).save(tmp_path / "turned.jpg", exif=exif)
    noise(64, 48).save(tmp_path / "damaged.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert open_image(tmp_path / "turned.jpg").size == (48, 64)
    assert open_image(tmp_path / "damaged.jpg").size == (64, 48)


def test_an_animation_gives_its_first_frame(tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "moving.gif").getpixel((0, 0)) == (255, 0, 0)
    check_image(tmp_path / "moving.gif")


def test_the_hash_is_of_size_and_pixels():
    image = Image.new("RGB", (2, 3), (1, 2, 3))
    assert pixel_hash(image) == hashlib.sha256(b"2x3:" + bytes([1, 2, 3] * 6)).hexdigest()
    assert pixel_hash(image) != pixel_hash(Image.new("RGB", (3, 2), (1, 2, 3)))


def test_saving_is_lossless_and_happens_once(tmp_path: Path):
    image = noise()
    ref = save_image(image, tmp_path / "images")
    before = Path(ref.path).stat().st_mtime_ns
    assert save_image(image, tmp_path / "images") == ref
    assert Path(ref.path).stat().st_mtime_ns == before
    assert ref.sha256 == pixel_hash(open_image(ref.path))
    assert Path(ref.path) == tmp_path / "images" / f"{ref.sha256}.png"


def test_concurrent_saves_leave_one_whole_file(tmp_path: Path):
    image = noise(200, 200)
    with ThreadPoolExecutor(8) as pool:
        refs = set(pool.map(lambda _: save_image(image, tmp_path), range(32)))
    assert len(refs) == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"{pixel_hash(image)}.png"]


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save_image(noise(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sizes():
    check_size((1, 1))
    check_size((200, 1))
    for size in [(0, 5), (201, 1), (10_000, 10_000)]:
        with pytest.raises(ImageError):
            check_size(size)


WHOLE = {kind: encoded(noise(24, 24), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damage_gives_an_image_or_an_image_error(tmp_path: Path, kind: str, data: st.DataObject):
    content = bytearray(WHOLE[kind])
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    (tmp_path / "damaged").write_bytes(content)
    with contextlib.suppress(ImageError):
        assert open_image(tmp_path / "damaged").mode == "RGB"


@pytest.mark.parametrize("kind", sorted(WHOLE))
def test_whole_files_pass_the_check(tmp_path: Path, kind: str):
    (tmp_path / "image").write_bytes(WHOLE[kind])
    check_image(tmp_path / "image")
    assert open_image(tmp_path / "image").size == (24, 24)
