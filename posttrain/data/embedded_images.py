"""Images that a row holds itself, as bytes or as a data: URL, put into files."""

import base64
import binascii
import hashlib
import io
import re
import uuid
from pathlib import Path

from PIL import Image

from posttrain.data.formats import DataError
from posttrain.data.formats.row import Row
from posttrain.media.images import FORMATS

#: Of one encoded image.
MAX_BYTES = 64 << 20
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,(?P<data>.*)", re.DOTALL)


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
        if "images" in row:
            images = row["images"]
            row["images"] = [self._path(image) for image in images] if isinstance(images, list) else images
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
        if isinstance(block, dict) and block.get("type") == "image" and "image" in block:
            return block | {"image": self._path(block["image"])}
        return block

    def _path(self, image: object) -> str:
        if isinstance(image, dict):
            held = (image.get(key) for key in ("bytes", "path", "url", "image"))
            image = next((value for value in held if value is not None), None)
        if isinstance(image, bytes):
            return self._written(image)
        if not isinstance(image, str):
            raise DataError(f"an image must be a path, bytes or a data: URL, got {str(image)[:60]!r}")
        if not image.startswith("data:"):
            return image.removeprefix("file://")
        found = _DATA_URL.fullmatch(image)
        if found is None:
            raise DataError(f"image {image[:40]!r} is not of the form data:image/…;base64,…")
        if len(found["data"]) > MAX_BYTES * 4 // 3 + 4:
            raise DataError(f"an embedded image is larger than {MAX_BYTES:,} bytes")
        try:
            return self._written(base64.b64decode(found["data"], validate=True))
        except binascii.Error as error:
            raise DataError(f"image {image[:40]!r} is not base64: {error}") from None

    def _written(self, data: bytes) -> str:
        if len(data) > MAX_BYTES:
            raise DataError(f"an embedded image is larger than {MAX_BYTES:,} bytes")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                suffix = str(image.format).lower()
        except Exception as error:
            # Pillow raises whatever a damaged header leads to.
            raise DataError(f"an embedded image is damaged or none of {', '.join(FORMATS)}") from error
        name = f"{hashlib.sha256(data).hexdigest()}.{suffix}"
        if not (self._folder / name).exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f".{uuid.uuid4().hex}.tmp"
            temporary.write_bytes(data)
            temporary.rename(self._folder / name)
        return str(self._final / name)
