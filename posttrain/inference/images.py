"""Images and videos of dialogues as an engine takes them: decoded once, shared, within a bound.

    dialogue ── acquire(images) ──► waits for room ──► decoded in threads ──► in a request of the engine
        ▲                             in order                                        │
        └────────────── the next turn: nothing is held in between ◄── release() ──────┘

A dialogue asks for all images of a turn at once and holds none while it waits, so whatever has been granted
ends by itself and makes room: nothing waits for ever, however small the room is.
"""

import collections
import contextlib
import ctypes
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from posttrain.inference.engine import EngineImage, EngineVideo
from posttrain.rendering.pixel_making import Pixels
from posttrain.rendering.pixels import (
    FileHashes,
    ImageChangedError,
    MeasuredImage,
    MeasuredVideo,
    Version,
    check_unchanged,
    part_of,
    version_of,
)
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.video_frames import TOLD_SECONDS
from posttrain.types import ImageRef, TrajectoryImage, TrajectoryMedium, TrajectoryVideo, VideoRef

#: The files of an image or video in a version, and the part of a video that is shown.
Source = tuple[Version, tuple[float | None, ...]]

#: Bytes of dropped pixels, at the least, after which the C library is told to give memory back to the system:
#: by itself it keeps ten times what is in use, in holes between what other threads hold.
TRIMMED = 64 * 2**20


@dataclass(eq=False)
class _Entry:
    """The pixels of one image or video.

    Attributes:
        nbytes: Their size, which is known before they are made.
        made: The pixels, once they are made.
        requests: Number of turns that hold them.
    """

    nbytes: int
    made: "Future[Pixels]"
    requests: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds it and no thread is at it."""
        return not self.requests and self.made.done()

    @property
    def has_failed(self) -> bool:
        """Whether there are no pixels; whoever asks for the image next tries again."""
        return self.made.done() and (self.made.cancelled() or self.made.exception() is not None)


@dataclass(eq=False)
class Claim:
    """What a dialogue asks for: ImageChangedError, in `ready`, if a file is not what was rendered.

    Attributes:
        images: The images and videos of a turn, each with its source.
        sizes: Bytes of each source's pixels.
        granted: Done once there is room for them.
        ready: The images and videos, once they are loaded.
        entries: The pixels of each source, from when there is room for them.
        left: Number of entries that are still being made.
    """

    images: Sequence[tuple[TrajectoryMedium, Source]]
    sizes: dict[Source, int]
    granted: "Future[None]" = field(default_factory=Future)
    ready: "Future[list[EngineImage]]" = field(default_factory=Future)
    entries: dict[Source, _Entry] = field(default_factory=dict)
    left: int = 0


class EngineImages:
    """The pixels of the images and videos in an engine's requests; any thread may use it.

    Room is granted in the order in which it was asked for. Images that no request holds stay while there is
    room, and go with the last dialogue that has shown them. Pixels are resized bytes, 3 for each pixel.

    Args:
        renderer: The renderer of the checkpoint that the engine serves.
        max_bytes: Most bytes to hold; a turn whose images alone take more is granted when nothing else is.
        threads: Threads that decode.

    Example:
        pictures = images.open()
        shown = pictures.acquire(images).ready.result()
        engine.submit(Request(..., images=shown))
        pictures.release()  # when the turn has been sampled
        pictures.close()  # when the dialogue is over
    """

    def __init__(self, renderer: Renderer, max_bytes: int, threads: int = 1) -> None:
        self._renderer = renderer
        self._max_bytes = max_bytes
        self._threads = max(1, threads)
        self._pool: ThreadPoolExecutor | None = None  # a text model needs none
        self._lock = threading.Lock()
        self._entries: OrderedDict[Source, _Entry] = OrderedDict()
        self._queue: collections.deque[Claim] = collections.deque()
        self._dialogues: Counter[Source] = Counter()
        self._hashes = FileHashes()
        self._bytes = self._peak = self._granted = self._dropped = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels that are held or being made."""
        return self._bytes

    @property
    def peak_nbytes(self) -> int:
        """The most that `nbytes` has been."""
        return self._peak

    @property
    def waiting(self) -> int:
        """Number of turns that wait for room, which only the end of others gives them."""
        return len(self._queue)

    def open(self) -> "DialogueImages":
        """Return the images of a new dialogue, which has shown none yet."""
        return DialogueImages(self)

    def close(self) -> None:
        """Drop everything, and end the threads."""
        with self._lock:
            claims, self._queue = self._queue, collections.deque()
            self._entries.clear()
            self._bytes = 0
        for claim in claims:
            claim.granted.cancel()
            claim.ready.cancel()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def ask(self, images: Sequence[TrajectoryMedium], shown: set[Source]) -> Claim:
        """Queue up for the room that a turn's images take.

        Args:
            images: The images and videos.
            shown: Sources that the dialogue has shown before; those of the images are added.
        """
        found = [(image, _source_of(image.ref)) for image in images]
        sizes = {file: self._nbytes(image) for image, file in found}
        claim = Claim(found, sizes)
        if not found:
            claim.granted.set_result(None)
            claim.ready.set_result([])
            return claim
        with self._lock:
            self._dialogues.update(sizes.keys() - shown)
            self._queue.append(claim)
            granted = self._grant()
        shown.update(sizes)
        self._hand_out(granted)
        return claim

    def give_back(self, claim: Claim) -> None:
        """Take back what was asked for: it is in no request any more, or nobody waits for it."""
        for future in (claim.granted, claim.ready):
            future.cancel()  # no effect on one that is done
        with self._lock:
            if claim.entries:
                self._granted -= 1
            elif claim in self._queue:
                self._queue.remove(claim)
            for entry in claim.entries.values():
                entry.requests -= 1
            granted = self._grant()
        self._hand_out(granted)

    def forget(self, shown: Iterable[Source]) -> None:
        """Drop the images that a dialogue has shown, unless others show them too."""
        with self._lock:
            self._dialogues.subtract(shown)
            for file in shown:
                if not self._dialogues[file]:
                    del self._dialogues[file]
            self._drop_useless(shown)
            granted = self._grant()
        self._hand_out(granted)

    def _grant(self) -> list[Claim]:
        """Give room to those who wait, in their order; the lock is held."""
        granted: list[Claim] = []
        while self._queue and self._make_room(self._queue[0]):
            claim = self._queue.popleft()
            for image, file in claim.images:
                if file not in self._entries:
                    self._entries[file] = self._begin(image, claim.sizes[file])
            claim.entries = {file: self._entries[file] for file in claim.sizes}
            claim.left = len(claim.entries)
            for file, entry in claim.entries.items():
                entry.requests += 1
                self._entries.move_to_end(file)
            self._granted += 1
            granted.append(claim)
        return granted

    def _make_room(self, claim: Claim) -> bool:
        """Drop images that nobody holds, the oldest first, as far as a claim needs it; the lock is held.

        Returns:
            Whether there is room; if not, nothing has been dropped.
        """
        wanted = sum(size for file, size in claim.sizes.items() if file not in self._entries)
        idle = [file for file, entry in self._entries.items() if entry.is_idle and file not in claim.sizes]
        excess = self._bytes + wanted - self._max_bytes
        if self._granted and sum(self._entries[file].nbytes for file in idle) < excess:
            return False
        for file in idle:
            if self._bytes + wanted <= self._max_bytes:
                break
            self._drop(file)
        return True

    def _nbytes(self, image: TrajectoryMedium) -> int:
        """Return the most bytes that its pixels take: the last pair of a video's frames may be one frame."""
        maker = self._renderer.media.maker
        size = maker.video_nbytes if isinstance(image, TrajectoryVideo) else maker.nbytes
        return size(image.num_tokens)

    def _begin(self, image: TrajectoryMedium, nbytes: int) -> _Entry:
        """Have an image loaded in a thread; the lock is held."""
        self._pool = self._pool or ThreadPoolExecutor(self._threads, thread_name_prefix="images")
        self._bytes += nbytes
        self._peak = max(self._peak, self._bytes)
        return _Entry(nbytes, self._pool.submit(self._load, image))

    def _drop_useless(self, files: Iterable[Source]) -> None:
        """Drop those images that could not be loaded, or that nobody shows any more; the lock is held."""
        for file in files:
            entry = self._entries.get(file)
            if entry is not None and (entry.has_failed or (entry.is_idle and file not in self._dialogues)):
                self._drop(file)

    def _drop(self, file: Source) -> None:
        """Drop an image; now and then, have what was dropped given back to the system; the lock is held."""
        nbytes = self._entries.pop(file).nbytes
        self._bytes -= nbytes
        self._dropped += nbytes
        if self._pool is not None and self._dropped > max(TRIMMED, self._max_bytes // 4):
            self._dropped = 0
            self._pool.submit(_give_memory_back)

    def _load(self, image: TrajectoryMedium) -> Pixels:
        """Decode an image, in a thread; raise ImageChangedError if it is not the one that was rendered."""
        ref, maker = image.ref, self._renderer.media.maker
        now = version_of(ref)
        path = ref.path if isinstance(ref, ImageRef) else ref.paths[0]
        expected = self._hashes.expected(ref, path, now)
        pixels = maker.image(path) if isinstance(ref, ImageRef) else maker.video(ref)
        self._hashes.note(now, pixels.sha256)
        check_unchanged(path, pixels.sha256, expected)
        if self._renderer.num_image_tokens(pixels.grid_thw) != image.num_tokens:
            raise ImageChangedError(f"{path}: it has another size than when it was rendered")
        return pixels

    def _hand_out(self, claims: Sequence[Claim]) -> None:
        """Make claims ready as soon as their images are loaded; the lock is not held."""
        for claim in claims:
            if claim.granted.set_running_or_notify_cancel():
                claim.granted.set_result(None)
            # Futures keep their callbacks: these must not keep a claim, and with it pixels, when it is ready.
            holder = [claim]
            for entry in claim.entries.values():
                entry.made.add_done_callback(lambda _, holder=holder: self._one_loaded(holder))

    def _one_loaded(self, holder: list[Claim]) -> None:
        """Note that one image of a claim is loaded, or cannot be; after the last one the claim is ready."""
        with self._lock:
            [claim] = holder
            claim.left -= 1
            if claim.left:
                return
            holder.clear()
            self._drop_useless(claim.entries)
        if not claim.ready.set_running_or_notify_cancel():
            return
        try:
            made = [(image, claim.entries[file].made.result()) for image, file in claim.images]
            claim.ready.set_result([_engine_image(image, pixels, self._renderer) for image, pixels in made])
        except Exception as error:  # whatever a damaged file makes of itself, who asked for it is told
            claim.ready.set_exception(error)


class DialogueImages:
    """The images and videos of one dialogue, turn by turn; made by `EngineImages.open`."""

    def __init__(self, images: EngineImages) -> None:
        self._images = images
        self._shown: set[Source] = set()
        self._claim: Claim | None = None
        self._closed = False

    def acquire(self, images: Sequence[TrajectoryMedium]) -> Claim:
        """Ask for the images of a turn; whatever comes of it, `release` or `close` must follow.

        Args:
            images: All images and videos of the dialogue so far, with the places of their placeholders.

        Raises:
            RuntimeError: If the turn before has not been released.
        """
        if self._claim is not None:
            raise RuntimeError("a dialogue that holds images waits for more; release those first")
        self._claim = self._images.ask(images, self._shown)
        return self._claim

    def prefetch(self, images: Sequence[TrajectoryMedium]) -> None:
        """Have images loaded that will be asked for soon, as far as there is room; nothing is held."""
        if not self._closed:
            holder = [self._images.ask(images, self._shown)]
            holder[0].ready.add_done_callback(lambda _: self._images.give_back(holder.pop()))

    def release(self) -> None:
        """Say that no request has the images any more; the dialogue may ask for them again."""
        claim, self._claim = self._claim, None
        if claim is not None:
            self._images.give_back(claim)

    def close(self) -> None:
        """Say that the dialogue is over."""
        self._closed = True
        self.release()
        shown, self._shown = self._shown, set()
        self._images.forget(shown)


def _give_memory_back() -> None:
    """Have the C library return free memory to the system, where it is glibc."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _source_of(ref: ImageRef | VideoRef) -> Source:
    """Return its files, as they were when it was rendered; without a look at them, if possible."""
    version = ref.version if isinstance(ref, MeasuredImage | MeasuredVideo) else version_of(ref)
    return version, part_of(ref) if isinstance(ref, VideoRef) else ()


def _engine_image(image: TrajectoryMedium, pixels: Pixels, renderer: Renderer) -> EngineImage:
    """Return an image or video as the engine takes it."""
    maker = renderer.media.maker
    loaded = (pixels.sha256, pixels.values, pixels.grid_thw, image.offset, image.num_tokens)
    if isinstance(image, TrajectoryImage):
        return EngineImage(*loaded, maker.image_patches)
    seconds = pixels.seconds_per_grid if renderer.family in TOLD_SECONDS else None
    return EngineVideo(*loaded, maker.video_patches, part_of(image.ref), image.runs, seconds)


def engine_images(images: Iterable[TrajectoryMedium], renderer: Renderer) -> list[EngineImage]:
    """Load a few images at once, as for scoring; those of many dialogues go through `EngineImages`.

    Args:
        images: Images and videos with the places of their placeholders.
        renderer: The renderer of the checkpoint that the engine serves.

    Raises:
        ImageChangedError: If a file's content does not match the hash.
        ImageError, VideoError: If a file cannot be read.
    """

    def loaded(image: TrajectoryMedium) -> Pixels:
        media = renderer.media  # which the renderer of a text model has not
        return media.load(image.ref) if isinstance(image, TrajectoryImage) else media.load_video(image.ref)

    return [_engine_image(image, loaded(image), renderer) for image in images]
