"""Frames and clips by time, of the video that a row names in a column or that its prompt shows."""

import math
import threading
from pathlib import Path
from typing import Annotated

from PIL import Image

from posttrain.failures import WorldError
from posttrain.media.videos import VideoError, VideoInfo, read_frames, video_info
from posttrain.types import VideoRef
from tools_env.sdk import ToolError, ToolResult, tool
from tools_env.sessions import Episode, Session
from tools_env.shown import MAX_IMAGES

_one_at_a_time = threading.Lock()  # decoding takes every core


class VideoFrames(Session):
    """Look at frames of the video that a column of the row names, or else of the one that its prompt shows.

    Times are those of the whole video, as the model is told them; where a part of it is shown, only that part
    can be looked at.

    Args:
        root: Folder in which the videos of the column are; a row cannot leave it.
        column: The column with the path, below that folder.

    Example:
        tools: [{name: video_frames, params: {root: videos}}]
    """

    deadline_s = 60.0

    def __init__(self, root: str | None = None, column: str = "video") -> None:
        self._root, self._column = None if root is None else Path(root).resolve(), column
        if self._root is not None and not self._root.is_dir():
            raise ValueError(f"there is no folder {self._root}")
        self._video: VideoRef | None = None

    def open(self, episode: Episode) -> None:
        """Find the video and its length; what is wrong with it is no fault of the model."""
        self._video = self._found(episode)
        self._info = video_info(self._video)

    def _found(self, episode: Episode) -> VideoRef:
        named = None if self._root is None else episode.sample.columns.get(self._column)
        shown = [video for message in episode.sample.messages for video in message.videos]
        if named is None and len(shown) == 1:
            return shown[0]
        if self._root is None or not isinstance(named, str):
            raise VideoError(
                f"the row has no column {self._column!r} that names a video below `root`, and its prompt"
                f" shows {len(shown)} videos, not one"
            )
        path = (self._root / named).resolve()
        if not path.is_relative_to(self._root):
            raise VideoError(f"{named!r} leads out of {self._root}")
        return VideoRef((str(path),))

    @tool
    def video_frame_tool(self, second: Annotated[float, "When, in seconds from the start."]) -> ToolResult:
        """Look at one frame of the video."""
        return self._look([second])

    @tool
    def video_clip_tool(
        self,
        start: Annotated[float, "Where it begins, in seconds."],
        end: Annotated[float, "Where it ends, in seconds."],
        frames: Annotated[int, "How many frames to look at, from 2 to 4."] = 4,
    ) -> ToolResult:
        """Look at a part of the video: a few frames at equal distances."""
        if not 2 <= frames <= MAX_IMAGES:
            raise ToolError(f"frames must be from 2 to {MAX_IMAGES}")
        if not start < end:
            raise ToolError("start must be before end")
        return self._look([start + (end - start) * i / (frames - 1) for i in range(frames)])

    def _look(self, seconds: list[float]) -> ToolResult:
        assert self._video is not None
        info: VideoInfo = self._info
        start, end = info.frames[0] / info.fps, (info.frames[-1] + 1) / info.fps
        if not all(math.isfinite(second) and start <= second <= end for second in seconds):
            raise ToolError(f"the video lasts from {start:.2f} to {end:.2f} s")
        numbers = [min(info.frames[-1], math.floor(second * info.fps)) for second in seconds]
        wanted = sorted(set(numbers))
        try:
            with _one_at_a_time:
                shown = dict(zip(wanted, read_frames(self._video, wanted), strict=True))
        except VideoError as error:
            raise WorldError(str(error)) from error
        images = [Image.fromarray(shown[number]) for number in numbers]
        times = ", ".join(f"{number / info.fps:.2f} s" for number in numbers)
        return ToolResult(f"At {times} of {end:.2f} s.", images)
