"""Reading, hashing and storing images: the one way by which a file becomes RGB pixels.

The engine, the learner, the tools and the checks of a dataset all read images here, so that they see
the same pixels. Beside the standard library it needs only Pillow, so that plugins can use it.
"""

import contextlib
import hashlib
import io
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageOps

from posttrain.types import ImageRef

#: Pillow's own limit: about what a 8-bit RGB image needs to fill 256 MiB.
MAX_PIXELS = 89_478_485
#: The processors of all three families refuse anything longer and thinner.
MAX_ASPECT_RATIO = 200
#: Pillow knows many more formats, some of which start other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


class ImageError(ValueError):
    """An image that cannot be used; the message names the file and the reason."""


def check_size(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a (width, height) that no processor takes.

    Raises:
        ImageError: If it has no pixels, too many of them, or is more than 200 times longer than wide.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{width}×{height} is empty")
    if width * height > max_pixels:
        raise ImageError(f"{width}×{height} has more than the {max_pixels:,} pixels allowed")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise ImageError(f"{width}×{height} is more than {MAX_ASPECT_RATIO} times as long as it is wide")


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a file to RGB as a viewer shows it.

    EXIF orientation is applied (and ignored where it is damaged), transparency becomes white, 16-bit
    grey is scaled to 8 bits, and an animation gives its first frame.

    Args:
        path: A regular file; devices, pipes and folders are refused without reading from them.
        max_pixels: Refused from the header above this, before anything is decoded.

    Raises:
        ImageError: If the file is missing, of another format, damaged, or of an unusable size.
    """
    with _header(path, max_pixels) as image:
        return _to_rgb(image)


def check_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> None:
    """Tell whether `open_image` will succeed, at a fraction of its cost.

    A PNG's checksums are verified without unpacking it, and a JPEG is decoded at an eighth of its size.

    Raises:
        ImageError: As `open_image` does.
    """
    with _header(path, max_pixels) as image:
        if image.format == "PNG":
            image.verify()
        else:
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height by the header alone, before EXIF orientation is applied.

    Raises:
        ImageError: If the file is missing, of another format, or of an unusable size.
    """
    with _header(path, MAX_PIXELS) as image:
        return image.size


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 over `"<width>x<height>:"` and the RGB bytes, row by row."""
    rgb = _rgb(image)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def save_image(image: Image.Image, directory: Path) -> ImageRef:
    """Store an image as `<directory>/<pixel hash>.png`, once however often it is saved.

    The file appears complete or not at all, also when several processes save the same image.

    Returns:
        The absolute path and the pixel hash.

    Raises:
        OSError: If the file cannot be written.
    """
    rgb = _rgb(image)
    return save_png(lambda: encode_png(rgb), pixel_hash(rgb), directory)


def encode_png(image: Image.Image) -> bytes:
    """An image as a PNG file, of little compression."""
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return file.getvalue()


def save_png(encode: Callable[[], bytes], digest: str, directory: Path) -> ImageRef:
    """As `save_image`, of an image whose hash is known; it is encoded only where the file is missing.

    Args:
        encode: Gives the PNG.
        digest: The pixel hash.
        directory: Made where it is missing.
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
        OSError: If there is no such file, or it may not be read.
        ImageError: If it is no regular file.
    """
    # Opening a pipe would block for ever without O_NONBLOCK; a regular file does not mind it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = open(descriptor, "rb")  # noqa: PTH123, SIM115 (a descriptor, not a path; the caller closes it)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ImageError("not a regular file")
    return file


@contextlib.contextmanager
def _header(path: str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open a file far enough to know its format and size; every failure inside is an `ImageError`."""
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            check_size(image.size, max_pixels)
            if image.mode in ("I", "F"):
                raise ImageError("pixels of 32 bits a channel have no agreed brightness")
            yield image
    except Exception as error:
        # Decoders of damaged files raise whatever they like: SyntaxError, struct.error, IndexError…
        raise ImageError(f"image {str(path)[-200:]!r} cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"it has more than the {MAX_PIXELS:,} pixels allowed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
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
    """The image in RGB; itself where it is so already, of which Pillow's own `convert` makes a copy."""
    return image if image.mode == "RGB" else image.convert("RGB")
