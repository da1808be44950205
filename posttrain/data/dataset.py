"""The rows of a canonical file: each checked once, broken ones set aside, good ones parsed when asked for."""

import array
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.data import Use
from posttrain.data.formats import DataError, parse_row, rows
from posttrain.data.uses import MISFITS, fits, repeated_id
from posttrain.files.progress import progress_bar
from posttrain.media.images import ImageError, check_image
from posttrain.media.videos import VideoError, check_video, video_hash
from posttrain.types import Sample, VideoRef


@dataclass(frozen=True)
class BrokenRow:
    """A row that was set aside.

    Example:
        BrokenRow("/data/train.jsonl:17", "image 'images/17.png' cannot be found: No such file or directory")
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class Dataset:
    """The good rows of a canonical file, parsed when asked for; about 16 bytes a row are held.

    Attributes:
        path: The JSONL file.
        image_root: What image paths are relative to.
        fingerprint: SHA-256 of the file, and of the images that it names.
        broken: The rows set aside, with place and reason.
        filtered: Number of rows that the dataset's filters removed.

    Example:
        dataset = Dataset(Path("train.jsonl"))
        dataset[0].messages
    """

    def __init__(
        self,
        path: Path,
        image_root: Path | None = None,
        places: Path | None = None,
        broken: Sequence[BrokenRow] = (),
        filtered: int = 0,
        use: Use = "prompts",
    ):
        """Read the whole file once: every row is parsed, every image and video checked.

        Args:
            path: A canonical file.
            image_root: What image paths are relative to; the file's folder if None.
            places: Of a rewritten file, which line says where each line came from.
            broken: Rows that were set aside before the file was written.
            filtered: Number of rows that filters removed before.
            use: A row that cannot be used so is broken: `dialogues` have an assistant's turn to learn from,
                `pairs` have `chosen` and `rejected`, `episodes` show no videos.

        Raises:
            DataError: If the file cannot be read.
        """
        self.path = path.absolute()
        self.image_root = self.path.parent if image_root is None else image_root.absolute()
        self._places = places
        self.broken: list[BrokenRow] = list(broken)
        self.filtered = filtered
        self._offsets = array.array("Q")
        self._lines = array.array("Q")
        try:
            self._version = file_version(self.path)
            with self.path.open("rb") as file:
                digest: Any = hashlib.file_digest(file, "sha256")
                file.seek(0)
                with progress_bar(f"reading {self.path.name}", total=self._version[0], unit="B") as bar:
                    self._scan(file, use, digest.update, bar)
                self.fingerprint: str = digest.hexdigest()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index` of the good rows, in the file's order.

        Raises:
            IndexError: Beyond the last row.
            DataError: If the file has changed since it was opened, or an image is gone.
        """
        offset, line = self._offsets[index], self._lines[index]
        try:
            if file_version(self.path) != self._version:
                raise DataError("the file has changed since the run began; restore it, or start anew")
            with self.path.open("rb") as file:
                file.seek(offset)
                return self._parsed(file.readline(), line)
        except OSError as error:
            raise DataError(f"{self.path}:{line} cannot be read: {error.strerror}") from error
        except DataError as error:
            raise DataError(f"{self.place(line)}: {error}") from None

    def place(self, line: int) -> str:
        """Where a line of the file came from, as `file:line`."""
        if self._places is not None:
            with self._places.open(encoding="utf-8") as places:
                return next(itertools.islice(places, line - 1, None)).rstrip("\n")
        return f"{self.path}:{line}"

    def _parsed(self, content: bytes, line: int) -> Sample:
        return parse_row(content, self.image_root, f"{self.path.name}:{line}")

    def _scan(self, file: Any, use: Use, update: Callable[[bytes], object], bar: Any) -> None:
        ids: set[str] = set()
        images: set[str | VideoRef] = set()
        for line, offset, content in rows(file):
            bar.update(len(content))
            try:
                sample = self._parsed(content, line)
                if sample.id in ids:
                    raise DataError(repeated_id(sample.id))
                _check_media(sample, images, update)
                if not fits(sample, use):  # last: the digest does not depend on it
                    raise DataError(MISFITS[use])
            except (DataError, ImageError, VideoError) as error:
                self.broken.append(BrokenRow(self.place(line), str(error)))
                continue
            ids.add(sample.id)
            self._offsets.append(offset)
            self._lines.append(line)


def file_version(path: Path) -> tuple[int, int]:
    """Size and time of the last change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _check_media(sample: Sample, checked: set[str | VideoRef], update: Callable[[bytes], object]) -> None:
    """Check the images and videos that no earlier row has, and add their content to a digest."""
    turns = (*sample.messages, *sample.chosen, *sample.rejected)
    for image in (image for message in turns for image in message.images):
        if image.path not in checked:
            check_image(image.path)
            checked.add(image.path)
            with Path(image.path).open("rb") as file:
                update(hashlib.file_digest(file, "sha256").digest())
    for video in (video for message in turns for video in message.videos):
        if video not in checked:
            check_video(video)
            checked.add(video)
            update(video_hash(video).encode())
