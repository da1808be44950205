"""Images that a row holds itself, as bytes or as a data: URL, put into files."""

import base64
import binascii
import hashlib
import io
import re
import uuid
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from posttrain.data.formats import DataError, is_held
from posttrain.data.formats.keys import IMAGE_KEYS, refuse_unread
from posttrain.data.formats.row import Row
from posttrain.media.images import FORMATS

#: Of one encoded image.
MAX_BYTES = 64 << 20
#: Of a data: URL of whatever type and parameters (`charset=utf-8`); what it holds tells its format.
_HEAD = re.compile(r"data:[^,]{0,200};\s*base64\s*,", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
#: Formats that Pillow calls otherwise than files of them end: phones' JPEGs with a second picture.
_ENDINGS = {"mpo": "jpg"}


class EmbeddedImages:
    """Writes each image once, its bytes as they are, under the hash of its bytes.

    Example:
        images = EmbeddedImages(Path("cache/photos/images"), Path("cache/photos/images"))
        images.place_all({"messages": [...], "images": ["data:image/png;base64,iVBOR…"]})
    """

    def __init__(self, folder: Path, final: Path):
        """Write into a folder.

        Args:
            folder: Where files are written; made when the first one is.
            final: Where they will lie when rows are read.
        """
        self._folder = folder
        self._final = final

    def place_all(self, row: Row) -> Row:
        """Return a canonical row whose images are all paths.

        Raises:
            DataError: If an image is neither a path nor a picture, or too large.
        """
        row = dict(row)
        for key, kind in (("images", "image"), ("videos", "video")):
            listed = row.get(key)
            if isinstance(listed, list):
                row[key] = [self._shown({"type": kind, kind: each}, kind)[kind] for each in listed]
        for key in ("messages", "chosen", "rejected"):
            messages = row.get(key)
            if isinstance(messages, list):
                row[key] = [self._message(message) for message in messages]
        return row

    def _message(self, message: object) -> object:
        if not isinstance(message, dict) or not isinstance(message.get("content"), list):
            return message
        return message | {"content": [self._block(block) for block in message["content"]]}

    def _block(self, block: object) -> object:
        if not isinstance(block, dict):
            return block
        kind = "image" if block.get("type") == "region" else block.get("type")
        return self._shown(block, kind) if kind in ("image", "video") and kind in block else block

    def _shown(self, block: Row, kind: str) -> Row:
        """Return a block that names an image, or a video, with it as a path, or its frames as paths."""
        value = block[kind]
        if kind == "image":
            return block | {"image": self._path(value)}
        if isinstance(value, dict) and "video" in value:
            return block | {"video": self._shown(value, "video")}
        if isinstance(value, list):
            return block | {"video": [self._path(frame) for frame in value]}
        return block

    def _path(self, image: object) -> str:
        if isinstance(image, dict):
            refuse_unread(image, IMAGE_KEYS, "an image", "images")
            held = (image.get(key) for key in ("bytes", "path", "url", "image"))
            image = next((value for value in held if value is not None), None)
        if isinstance(image, bytes):
            return self._written(image)
        if not isinstance(image, str):
            raise DataError(f"an image must be a path, bytes or a data: URL, got {str(image)[:60]!r}")
        if not is_held(image):
            return image.removeprefix("file://")
        head = _HEAD.match(image)
        if head is None and image[:5].lower() == "data:":
            raise DataError(f"image {image[:40]!r} is not of the form data:image/…;base64,…")
        if len(image) > MAX_BYTES * 4 // 3 + MAX_BYTES // 16:
            raise DataError(f"an embedded image is larger than {MAX_BYTES:,} bytes")
        try:
            return self._written(_decoded(image[head.end() :] if head else image))
        except binascii.Error as error:
            raise DataError(f"image {image[:40]!r} is not base64: {error}") from None

    def _written(self, data: bytes) -> str:
        if len(data) > MAX_BYTES:
            raise DataError(f"an embedded image is larger than {MAX_BYTES:,} bytes")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                named = str(image.format).lower()
        except Exception as error:
            # Pillow raises whatever a damaged header leads to.
            raise DataError(f"an embedded image is damaged or none of {', '.join(FORMATS)}") from error
        name = f"{hashlib.sha256(data).hexdigest()}.{_ENDINGS.get(named, named)}"
        if not (self._folder / name).exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f".{uuid.uuid4().hex}.tmp"
            temporary.write_bytes(data)
            temporary.rename(self._folder / name)
        return str(self._final / name)


def _decoded(text: str) -> bytes:
    """Decode base64 with line breaks or without, padded or not, of either alphabet, and as URLs escape it.

    Raises:
        binascii.Error: If it is something else.
    """
    text = _SPACE.sub("", unquote(text) if "%" in text else text).rstrip("=")
    text = text.replace("-", "+").replace("_", "/")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
