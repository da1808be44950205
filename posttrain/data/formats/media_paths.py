"""Where the images and videos of rows are: by their paths, relative to a folder or absolute."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from posttrain.data.formats.errors import DataError
from posttrain.data.formats.row import Row
from posttrain.media.links import follow
from posttrain.media.suffixes import IMAGE_SUFFIXES

#: Keys of objects that have the path of an image or a video.
_PATH_KEYS = ("image", "video", "path", "url", "image_url")


def image_path(written: str, folder: Path) -> Path:
    """Find a row's image; nothing is opened.

    Links are followed (see `posttrain.media.links`): they are no more than an absolute path, which a row may
    give as well. What a row says by `..` is held to the folder, which
    `source.images` of the dataset's YAML may widen.

    Raises:
        DataError: If it is a URL, does not exist, is no regular file with an image's suffix, or a relative
            path climbs out of the folder.
    """
    return media_path("image", written, folder, IMAGE_SUFFIXES)


def media_path(noun: str, written: str, folder: Path, suffixes: tuple[str, ...]) -> Path:
    """Find an image or a video as `image_path` does; a folder of frames is a video as well."""
    shown = f"{noun} {written[:200]!r}"
    if "://" in written or written.startswith("data:"):
        raise DataError(f"{shown} is a URL; download it and give its path")
    try:
        path = follow(_joined(shown, written, folder.resolve()), suffixes)
        kind = path.stat().st_mode
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that go in a circle
        raise DataError(f"{shown} cannot be found: {_reason(error, written, folder)}") from None
    if noun == "video" and stat.S_ISDIR(kind):
        return path
    if not stat.S_ISREG(kind):
        raise DataError(f"{shown} is not a regular file")
    if path.suffix.lower() not in suffixes:
        raise DataError(f"{shown} must end in one of {', '.join(suffixes)}")
    return path


def begin_at(row: Row, rows_folder: Path, images_folder: Path) -> Row:
    """Return a canonical row whose climbing paths, `../images/7.png`, begin at a folder instead.

    Paths that climb are meant from where their rows lie. Those that lead into the folder are written relative
    to it; all others stay, and are refused where they leave it.
    """

    def begun(value: object) -> object:
        if isinstance(value, str) and ".." in value.split("/") and not Path(value).is_absolute():
            path = Path(os.path.normpath(rows_folder / value))
            return str(path.relative_to(images_folder)) if path.is_relative_to(images_folder) else value
        if isinstance(value, list):
            return [begun(each) for each in value]
        if isinstance(value, dict):
            return {key: begun(each) if key in _PATH_KEYS else each for key, each in value.items()}
        return value

    changed = {key: begun(row[key]) for key in ("images", "videos") if key in row}
    for key in ("messages", "chosen", "rejected"):
        if isinstance(turns := row.get(key), list):
            changed[key] = [_with_content(turn, begun) for turn in turns]
    return row | changed


def _with_content(turn: object, change: Callable[[object], object]) -> object:
    """Return a turn with its content changed, where that is a list of blocks."""
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), list):
        return turn
    return turn | {"content": change(turn["content"])}


def _joined(shown: str, written: str, root: Path) -> Path:
    """Return the absolute path of what a row says, held to the folder."""
    if ".." not in written or Path(written).is_absolute():
        return root / written
    path = Path(os.path.normpath(root / written))
    if path.is_relative_to(root):
        return path
    climbs = Path(os.path.relpath(path, root)).parts.count("..")
    above = root.parents[min(climbs, len(root.parents)) - 1]
    raise DataError(
        f"{shown} leads out of {root}; if it is meant, set source.images in the dataset's YAML to the folder "
        f"that it may lead to: source: {{path: …, images: {above}}}"
    )


def _reason(error: Exception, written: str, folder: Path) -> str:
    """Return why a path cannot be found, and what is to be done about it."""
    reason = str(getattr(error, "strerror", None) or error)
    if not isinstance(error, FileNotFoundError) or Path(written).is_absolute():
        return reason
    if "\\" in written and (folder / written.replace("\\", "/")).exists():
        return f"{reason}; there is {written.replace(chr(92), '/')}: write paths with /"
    return f"{reason} in {folder}; source.images in the dataset's YAML names another folder for image paths"
