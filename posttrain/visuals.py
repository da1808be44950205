"""Images and videos by reference, and where a ledger shows them; part of `posttrain.types`."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ImageRef:
    """An image by reference; pixels are read where they are needed, never shipped.

    Attributes:
        path: Absolute path of an image file.
        sha256: Hash of the decoded RGB pixels and their size, or "" while unknown. The learner
            refuses an image whose hash differs from the one the engine saw.

    Example:
        ImageRef("/data/scene-0007.png", "9f2c…")
    """

    path: str
    sha256: str = ""


@dataclass(frozen=True)
class VideoRef:
    """A video by reference: a file, a folder of frames in the order of their names, or frames one by one.

    Attributes:
        paths: Absolute path of the video file or of the folder; or those of the frames.
        sha256: Hash of the files' bytes, or "" while unknown.
        fps: Frames to sample per second, in place of the run's `model.video_fps`.
        frame_rate: Frames per second of a series of frames; a video file has its own, so None there.
        start: Second at which the part that is shown begins.
        end: Second at which it ends; the end of the video if None.

    Example:
        VideoRef(("/data/clip.mp4",), start=2.0, end=9.5)
        VideoRef(("/data/walk/1.jpg", "/data/walk/2.jpg"), frame_rate=1.0)
    """

    paths: tuple[str, ...]
    sha256: str = ""
    fps: float | None = None
    frame_rate: float | None = None
    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        rates = (self.fps, self.frame_rate)
        if not self.paths or not all(rate is None or 0 < rate < math.inf for rate in rates):
            raise ValueError(f"a video needs a path, and rates above 0: {str(self)[:200]}")
        if not 0 <= self.start < (math.inf if self.end is None else self.end):
            raise ValueError(f"a video is shown from {self.start} s to {self.end} s, which is no part of it")


@dataclass
class TrajectoryImage:
    """An image inside a ledger.

    Attributes:
        ref: File and pixel hash.
        offset: Index of its first placeholder token in `Trajectory.token_ids`.
        num_tokens: Number of placeholder tokens.
    """

    ref: ImageRef
    offset: int
    num_tokens: int


@dataclass
class TrajectoryVideo:
    """A video inside a ledger or a rendered dialogue.

    Attributes:
        ref: The video, with its hash unless it was rendered from its header alone.
        offset: Index of the first token that stands for it: a placeholder, or what tells the time before it.
        runs: (offset, number) of each run of its placeholders: a single one, or in Qwen3-VL, which writes
            the time before each pair of frames, one per pair.
    """

    ref: VideoRef
    offset: int
    runs: list[tuple[int, int]]

    @property
    def num_tokens(self) -> int:
        """Number of placeholder tokens."""
        return sum(number for _, number in self.runs)

    def moved(self, count: int) -> "TrajectoryVideo":
        """Return it with so many tokens before it."""
        runs = [(offset + count, number) for offset, number in self.runs]
        return TrajectoryVideo(self.ref, self.offset + count, runs)


#: An image or a video inside a ledger.
TrajectoryMedium = TrajectoryImage | TrajectoryVideo
