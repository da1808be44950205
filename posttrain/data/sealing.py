"""Opening a data file: the first process checks it and leaves an index, all others open the index.

An index is used as long as the data file is what it was: its size and times are looked at, and its contents
where these differ. Whoever wants to know also looks at every image and video in the same way, and again at
broken rows, which may have been repaired. An index that does not fit, or is damaged, is made again; of the
images and videos only those that changed are then read.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from posttrain.data.checking import Known, check_rows, still_broken
from posttrain.data.media_stamps import content_hash, is_unchanged, stamp_of, unsettled_ns
from posttrain.data.row_index import FileStamp, IndexFileError, RowIndex, open_index
from posttrain.files.lock import file_lock
from posttrain.files.progress import progress_bar
from posttrain.media.images import ImageError
from posttrain.media.videos import VideoError

logger = logging.getLogger(__name__)

#: Folder in the cache.
INDEXES = "indexes"
#: Images and videos that one task of the pool looks at.
_BATCH = 1024
#: Age from which the index of a data file that is gone is removed.
_OLD_S = 30 * 24 * 3600


def sealed_index(path: Path, image_root: Path | None, cache: Path, look_again: bool) -> RowIndex:
    """Open the index of a canonical file; where there is none that fits, check the file and leave one.

    Of several processes that find none, one checks the file and the others wait.

    Args:
        path: A canonical file.
        image_root: What image paths are relative to; the file's folder if None.
        cache: Where indexes are kept; where it cannot be written, the index is in memory alone.
        look_again: Whether to look for images and videos that changed, and for rows that were repaired.

    Raises:
        DataError: If the file cannot be read.
        DiskFull: If there is no space for the index.
    """
    path = path.absolute()
    root = path.parent if image_root is None else image_root.absolute()
    name = hashlib.sha256(json.dumps([str(path), str(root)]).encode()).hexdigest()[:16]
    file = cache / INDEXES / f"{path.stem[:60]}-{name}.index"
    index = _opened(file, path, root)
    fitting = _fitting(index, look_again)
    if fitting is not None and fitting is index:
        return fitting
    with contextlib.ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.debug("%s cannot be made: %s", file.parent, error)
        else:
            held.enter_context(file_lock(file.with_suffix(".lock")))
        newest = _opened(file, path, root)
        if newest is not None and (index is None or newest.checksum != index.checksum):
            index, fitting = newest, _fitting(newest, look_again)  # another process was faster
        if fitting is None:
            fitting = check_rows(path, root, _known(index))
        return fitting if fitting is index else _kept(fitting, file)


def _opened(file: Path, path: Path, root: Path) -> RowIndex | None:
    """Return the index in a file, or None if there is none, or it is damaged or another's."""
    try:
        index = open_index(file)
    except FileNotFoundError:
        return None
    except (IndexFileError, OSError) as error:
        logger.info("%s; %s is checked again", error, path)
        return None
    return index if (index.path, index.image_root) == (path, root) else None


def _fitting(index: RowIndex | None, look_again: bool) -> RowIndex | None:
    """Return the index if it still tells the truth; with new stamps where only these changed; else None."""
    if index is None:
        return None
    try:
        stamp = FileStamp.of(index.path)
        settled = not unsettled_ns(stamp.mtime_ns)
        if stamp != index.stamp or not index.settled:
            if stamp.size != index.stamp.size or _sha256(index.path) != index.sha256:
                return None
            if (stamp, settled) != (index.stamp, index.settled):
                index = dataclasses.replace(index, stamp=stamp, settled=settled, file=None)
    except OSError:
        return None  # the check will tell why
    return _looked_again(index) if look_again else index


def _looked_again(index: RowIndex) -> RowIndex | None:
    """Return the index if its images and videos are the same and its broken rows still broken, else None."""
    broken = [fault for fault in index.faults if fault.by_files]
    if not index.media_count and not broken:
        return index
    starts = range(0, index.media_count, _BATCH)
    times = index.times.copy()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        changes = pool.map(lambda start: _new_times(index, start), starts)
        bar = progress_bar(f"looking at images of {index.path.name}", changes, len(starts), "batch")
        for start, found in zip(starts, bar, strict=True):
            if found is None:
                return None
            for number, changed in found.items():
                times[start + number] = changed
        if not all(pool.map(lambda fault: still_broken(fault, index), broken)):
            return None
    finally:
        pool.shutdown(cancel_futures=True)
    if (times == index.times).all():
        return index
    return dataclasses.replace(index, times=times, file=None)


def _new_times(index: RowIndex, start: int) -> dict[int, int] | None:
    """Look at a batch of images and videos.

    Returns:
        The new times in the stamps of those that have the same contents, by their number in the batch; None
        if one of them changed.
    """
    found: dict[int, int] = {}
    for number, (medium, known) in enumerate(index.media_in(start, _BATCH)):
        if is_unchanged(medium, known):
            continue
        stamp = stamp_of(medium)
        try:
            if stamp is None or stamp[0] != known[0] or content_hash(medium) != index.hash_of(start + number):
                return None
        except (ImageError, VideoError):
            return None
        found[number] = stamp[1]
    return found


def _known(index: RowIndex | None) -> Known:
    if index is None:
        return {}
    media = index.media_in(0, index.media_count)
    return {medium: (stamp, index.hash_of(number)) for number, (medium, stamp) in enumerate(media)}


def _kept(index: RowIndex, file: Path) -> RowIndex:
    """Write an index and open it from its file; where that cannot be, return it as it is."""
    try:
        index.save(file)
        _prune(file.parent)
        return open_index(file)
    except (OSError, IndexFileError) as error:
        logger.warning("%s was not kept, so other processes check the dataset as well: %s", file, error)
        return index


def _prune(folder: Path) -> None:
    """Remove indexes that are old, and of data files that are gone."""
    for file in folder.glob("*.index"):
        with contextlib.suppress(OSError, IndexFileError):
            if time.time() - file.stat().st_mtime > _OLD_S and not open_index(file).path.exists():
                file.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
