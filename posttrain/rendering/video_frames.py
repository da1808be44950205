"""Decide which frames of a video a model sees, at what size, and which tokens stand for them.

Frames are sampled as the checkpoint's own video processor does it, at `fps` frames per second. If a video
then takes more tokens than allowed, its frames are first made smaller, but not below the smallest size that
Qwen's own reader uses; after that, fewer frames are shown.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Qwen3VLVideoProcessor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize as resize_frame
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as resize_video
from transformers.video_utils import VideoMetadata

from posttrain.media.videos import VideoError, VideoInfo, read_frames, video_info
from posttrain.rendering.processors import VideoProcessor, VisionProcessor
from posttrain.types import VideoRef

#: Fewest tokens of a pair of frames: rather than make frames smaller, fewer are shown (VIDEO_MIN_TOKEN_NUM of
#: qwen-vl-utils).
LEAST_TOKENS = 128
#: Families that are told how many seconds are between the frames of a video: their M-RoPE counts them.
TOLD_SECONDS = ("qwen2_5_vl",)


@dataclass(frozen=True)
class VideoSettings:
    """How videos are sampled (`model.video_*`).

    Attributes:
        fps: Frames to sample per second.
        max_frames: Most frames of a video.
        max_tokens: Most placeholder tokens of a video.
        max_pixels: Most pixels of a frame; the checkpoint's own value if None.
    """

    fps: float = 2.0
    max_frames: int = 768
    max_tokens: int = 16_384
    max_pixels: int | None = None


@dataclass(frozen=True)
class VideoPlan:
    """What a model will see of a video.

    Attributes:
        numbers: Numbers of the frames that are shown.
        fps: Frames per second of the video itself.
        sampled_fps: Frames per second that are shown.
        size: (height, width) that frames are resized to, in pixels.
        grid_thw: [3] number of patches along time, height and width.
        seconds_per_grid: Seconds from one pair of frames to the next.
    """

    numbers: tuple[int, ...]
    fps: float
    sampled_fps: float
    size: tuple[int, int]
    grid_thw: torch.Tensor
    seconds_per_grid: float

    @property
    def timestamps(self) -> list[float]:
        """Time of each shown frame in the video, in seconds."""
        return [number / self.fps for number in self.numbers]


class VideoFrames:
    """Samples and resizes videos for one checkpoint.

    Attributes:
        video_processor: The checkpoint's video processor with these settings; it is saved with the weights.

    Example:
        frames = VideoFrames(processor, VideoSettings(fps=1.0))
        plan = frames.plan(VideoRef(("/data/clip.mp4",)))
        frames.resized(VideoRef(("/data/clip.mp4",)), plan).shape
    """

    def __init__(self, processor: VisionProcessor, settings: VideoSettings):
        """Set up the sampling.

        Args:
            processor: A Qwen-VL processor; it is not changed.
            settings: The settings of the run.
        """
        self.video_processor: VideoProcessor = copy.copy(processor.video_processor)
        self.video_processor.fps = settings.fps
        self.video_processor.max_frames = settings.max_frames
        self.video_processor.min_frames = min(self.video_processor.min_frames, settings.max_frames)
        self._processor = processor
        self._settings = settings
        self._temporal = self.video_processor.temporal_patch_size
        self._patch = self.video_processor.patch_size
        self._factor = self._patch * self.video_processor.merge_size

    @property
    def identity(self) -> str:
        """The settings as text: videos are sampled and resized alike where it is equal."""
        return f"{self.video_processor.to_json_string()}{self._settings}"

    def plan(self, ref: VideoRef) -> VideoPlan:
        """Decide on frames and size; only a file's header is read for this.

        Raises:
            VideoError: If the video cannot be used, or takes too many tokens however it is shown.
        """
        info = video_info(ref)
        numbers, size = self._within_budget(info, self._sample(info, fps=ref.fps or self._settings.fps))
        sampled_fps = len(numbers) / len(info.frames) * info.fps
        grid = [self._groups(len(numbers)), *(side // self._patch for side in size)]
        seconds = self._temporal / sampled_fps
        return VideoPlan(tuple(numbers), info.fps, sampled_fps, size, torch.tensor(grid), seconds)

    def text(self, plan: VideoPlan) -> str:
        """Write what the checkpoint's processor puts in the place of a video's placeholder."""
        metadata = VideoMetadata(
            total_num_frames=len(plan.numbers), fps=plan.fps, frames_indices=list(plan.numbers)
        )
        shown = {"video_grid_thw": plan.grid_thw[None], "video_metadata": [metadata]}
        return self._processor.replace_video_token(shown, 0)

    def resized(self, ref: VideoRef, plan: VideoPlan) -> torch.Tensor:
        """Decode and resize the frames of a plan; only one at a time is in memory in its original size.

        Returns:
            [frames, 3, height, width] bytes.

        Raises:
            VideoError: If a frame cannot be read.
        """
        size = SizeDict(height=plan.size[0], width=plan.size[1])
        processor = self.video_processor
        assert isinstance(processor, TorchvisionBackend)
        # Not processor.resize: Qwen3-VL's chooses a size of its own.
        return torch.cat(
            [
                TorchvisionBackend.resize(processor, _channels_first(frame), size, processor.resample)
                for frame in read_frames(ref, plan.numbers)
            ]
        )

    def _sample(
        self, info: VideoInfo, *, fps: float | None = None, num_frames: int | None = None
    ) -> Sequence[int]:
        """Return the numbers of the frames that the processor samples at `fps`, or `num_frames` in all."""
        metadata = VideoMetadata(total_num_frames=len(info.frames), fps=info.fps)
        places = self.video_processor.sample_frames(metadata, fps=fps, num_frames=num_frames)
        return [info.frames[int(place)] for place in places]

    def _within_budget(
        self, info: VideoInfo, numbers: Sequence[int]
    ) -> tuple[Sequence[int], tuple[int, int]]:
        """Choose frames and their size such that they take no more tokens than allowed."""
        most = self._settings.max_tokens
        size = self._resized(info, len(numbers), self._settings.max_pixels)
        if self._tokens(len(numbers), size) <= most:
            return numbers, size
        area = self._factor**2
        least = min(LEAST_TOKENS, self._tokens(self._temporal, size))
        pairs = min(len(numbers) // self._temporal, max(1, most // least))
        numbers = self._sample(info, num_frames=pairs * self._temporal)[: pairs * self._temporal]
        size = self._resized(
            info, len(numbers), min(most * area // pairs, self._settings.max_pixels or most * area)
        )
        if self._tokens(len(numbers), size) > most:
            raise VideoError(
                f"a video of {info.width}×{info.height} pixels takes more than {most} tokens however it is"
                " shown; raise model.video_max_tokens"
            )
        return numbers, size

    def _resized(self, info: VideoInfo, count: int, max_pixels: int | None) -> tuple[int, int]:
        """Return the (height, width) that the processor resizes `count` frames to.

        Args:
            info: The video.
            count: Number of frames that are shown.
            max_pixels: Most pixels of a frame; the processor's own limit if None.
        """
        limits = self.video_processor.size
        # Qwen3-VL's limits are those of all frames together, the others' of each frame.
        whole = isinstance(self.video_processor, Qwen3VLVideoProcessor)
        longest = limits["longest_edge"]
        if max_pixels is not None:
            longest = min(longest, max_pixels * count if whole else max_pixels)
        bounds = {"min_pixels": min(limits["shortest_edge"], longest), "max_pixels": longest}
        if whole:
            shape = {"temporal_factor": self._temporal, "factor": self._factor}
            return resize_video(count, info.height, info.width, **shape, **bounds)
        return resize_frame(info.height, info.width, self._factor, **bounds)

    def _tokens(self, count: int, size: tuple[int, int]) -> int:
        """Compute the number of tokens of `count` frames of a (height, width)."""
        return self._groups(count) * size[0] * size[1] // self._factor**2

    def _groups(self, count: int) -> int:
        """Compute the number of pairs of `count` frames; a last frame without a partner is doubled."""
        return -(-count // self._temporal)


def _channels_first(frame: np.ndarray) -> torch.Tensor:
    """Turn a frame [height, width, 3] into a tensor [1, 3, height, width]."""
    return torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous()
