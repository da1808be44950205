"""Read, hash and store images.

The engine, the learner, the tools and the checks of a dataset all read images by these functions, so that
they see the same RGB pixels. Only Pillow is needed besides the standard library, so plugins can use them.
"""

import contextlib
import hashlib
import io
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, ImageOps

from posttrain.types import ImageRef

#: Most pixels of an image. It is Pillow's own limit: an 8-bit RGB image of this size takes 256 MiB.
MAX_PIXELS = 89_478_485
#: Most times that an image may be longer than it is wide; the processors of all families refuse more.
MAX_ASPECT_RATIO = 200
#: Formats that are read; Pillow knows many more, and starts other programs for some of them (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


class ImageError(ValueError):
    """An image cannot be used; the message names the file and the reason."""


class ImageSizeError(ImageError):
    """An image is one, but of a size or shape that cannot be used."""


def check_size(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a (width, height) that no image processor takes.

    Raises:
        ImageSizeError: If there are no pixels or too many, or one side is more than 200 times the other.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ImageSizeError(f"{width}×{height} is empty")
    if width * height > max_pixels:
        raise ImageSizeError(f"{width}×{height} has more than the {max_pixels:,} pixels allowed")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise ImageSizeError(f"{width}×{height} is more than {MAX_ASPECT_RATIO} times as long as it is wide")


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a file to RGB, as an image viewer shows it.

    EXIF orientation is applied (and ignored if it is damaged), transparency becomes white, 16-bit grey is
    scaled to 8 bits, and of an animation the first frame is taken.

    Args:
        path: A regular file; devices, pipes and folders are refused without reading from them.
        max_pixels: Most pixels; larger images are refused by their header, before anything is decoded.

    Raises:
        ImageError: If the file is missing, of another format, damaged, or of an unusable size.
    """
    with _header(path, max_pixels) as image:
        return _to_rgb(image)


def decode_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode what somebody has sent, as `open_image` decodes a file.

    Raises:
        ImageSizeError: If it is an image of an unusable size, by its header.
        ImageError: If it is of another format, or damaged.
    """
    with _opened(io.BytesIO(content), "that was sent", max_pixels) as image:
        return _to_rgb(image)


def check_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Check that `open_image` will succeed, at a fraction of its cost.

    A PNG's checksums are verified without unpacking it, and a JPEG is decoded at an eighth of its size.

    Returns:
        The (width, height) that the image will have.

    Raises:
        ImageError: If the file is missing, of another format, damaged, or of an unusable size.
    """
    with _header(path, max_pixels) as image:
        width, height = image.size
        if _is_turned(image):
            width, height = height, width
        if image.format == "PNG":
            image.verify()
        else:
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
        return width, height


def image_size(path: str | Path) -> tuple[int, int]:
    """Read width and height from the header, before EXIF orientation is applied.

    Raises:
        ImageError: If the file is missing, of another format, or of an unusable size.
    """
    with _header(path, MAX_PIXELS) as image:
        return image.size


def shown_size(path: str | Path) -> tuple[int, int]:
    """Read width and height from the header, as `open_image` turns the image.

    Raises:
        ImageError: If the file is missing, of another format, or of an unusable size.
    """
    with _header(path, MAX_PIXELS) as image:
        width, height = image.size
        turned = False
        with contextlib.suppress(Exception):  # damaged EXIF says nothing about the orientation
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


def pixel_hash(image: Image.Image) -> str:
    """Compute the SHA-256 of `"<width>x<height>:"` followed by the RGB bytes, row by row."""
    rgb = _rgb(image)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def save_image(image: Image.Image, directory: Path) -> ImageRef:
    """Store an image as `<directory>/<pixel hash>.png`, unless it is there.

    The file appears completely or not at all, also if several processes save the same image.

    Returns:
        The image's absolute path and pixel hash.

    Raises:
        OSError: If the file cannot be written.
    """
    rgb = _rgb(image)
    return save_png(lambda: encode_png(rgb), pixel_hash(rgb), directory)


def encode_png(image: Image.Image) -> bytes:
    """Encode an image as PNG, with fast and weak compression."""
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return file.getvalue()


def save_png(encode: Callable[[], bytes], digest: str, directory: Path) -> ImageRef:
    """Store an image whose hash is known, as `save_image` does; it is encoded only if the file is missing.

    Args:
        encode: Returns the PNG.
        digest: The pixel hash.
        directory: The folder; created if missing.
    """
    path = directory.absolute() / f"{digest}.png"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{digest}-{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(encode())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return ImageRef(str(path), digest)


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file; devices, pipes and folders are refused without reading from them.

    Raises:
        OSError: If there is no such file, or no permission to read it.
        ImageError: If it is not a regular file.
    """
    # Without O_NONBLOCK, opening a pipe would block for ever; for a regular file it makes no difference.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = open(descriptor, "rb")  # noqa: PTH123, SIM115 (a descriptor, not a path; the caller closes it)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ImageError("not a regular file")
    return file


@contextlib.contextmanager
def _header(path: str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image's file without decoding it; every failure inside the context becomes an `ImageError`."""
    name = repr(str(path)[-200:])
    try:
        file = open_regular(path)
    except (OSError, ValueError) as error:
        raise ImageError(f"image {name} cannot be used: {_reason(error)}") from error
    with file, _opened(file, name, max_pixels) as image:
        yield image


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image without decoding it; every failure inside the context becomes an `ImageError`."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_size(image.size, max_pixels)
            if image.mode in ("I", "F"):
                raise ImageError("pixels of 32 bits a channel have no agreed brightness")
            yield image
    except Exception as error:
        # Decoders of damaged files raise whatever they like: SyntaxError, struct.error, IndexError…
        bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
        kind = ImageSizeError if isinstance(error, (ImageSizeError, *bombs)) else ImageError
        raise kind(f"image {name} cannot be used: {_reason(error)}") from error


def _is_turned(image: Image.Image) -> bool:
    """Tell whether an image's EXIF turns it by 90°, where that stands in the header."""
    if image.format == "PNG" and "exif" not in image.info:
        return False  # to look for it behind the pixels would decode them
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the orientation
        return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return False


def _reason(error: Exception) -> str:
    """Say in words why an image could not be opened."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"it has more than the {MAX_PIXELS:,} pixels allowed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image, apply its orientation, and convert it to RGB."""
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the orientation
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, without the copy that Pillow makes of an image that is RGB already."""
    return image if image.mode == "RGB" else image.convert("RGB")
