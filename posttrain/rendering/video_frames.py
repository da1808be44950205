"""Which frames of a video a model sees, at what size, and which tokens stand for them.

Frames are sampled as the checkpoint's own video processor samples them, at `fps` frames a second. A video
that then has more tokens than its budget is first shown smaller, down to what Qwen's own reader shows at
least, and then at fewer frames a second.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLVideoProcessor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize as resize_frame
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as resize_video
from transformers.video_utils import VideoMetadata

from posttrain.media.videos import VideoError, VideoInfo, read_frames, video_info
from posttrain.types import VideoRef

#: Tokens of a pair of frames, below which rather frames are left out (qwen-vl-utils: VIDEO_MIN_TOKEN_NUM).
LEAST_TOKENS = 128


@dataclass(frozen=True)
class VideoSettings:
    """How videos are sampled (`model.video_*`).

    Attributes:
        fps: Frames sampled a second.
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
        numbers: The frames, by number.
        fps: Frames a second of the video itself.
        sampled_fps: Frames a second that are shown.
        size: (height, width) that frames are resized to, in pixels.
        grid_thw: [3] patches along time, height and width.
        seconds_per_grid: From one pair of frames to the next.
    """

    numbers: tuple[int, ...]
    fps: float
    sampled_fps: float
    size: tuple[int, int]
    grid_thw: torch.Tensor
    seconds_per_grid: float

    @property
    def timestamps(self) -> list[float]:
        """When each frame is in the video, in seconds."""
        return [number / self.fps for number in self.numbers]


class VideoFrames:
    """Samples and resizes videos for one checkpoint.

    Attributes:
        video_processor: The checkpoint's, with the sampling of these settings; it is saved with the weights.

    Example:
        frames = VideoFrames(processor, VideoSettings(fps=1.0))
        plan = frames.plan(VideoRef(("/data/clip.mp4",)))
        frames.pixels(VideoRef(("/data/clip.mp4",)), plan).shape
    """

    def __init__(self, processor: Any, settings: VideoSettings):
        """Set up the sampling.

        Args:
            processor: A Qwen-VL processor; it stays as it is.
            settings: The run's.
        """
        self.video_processor: Any = copy.copy(processor.video_processor)
        self.video_processor.fps = settings.fps
        self.video_processor.max_frames = settings.max_frames
        self.video_processor.min_frames = min(self.video_processor.min_frames, settings.max_frames)
        self._processor = processor
        self._settings = settings
        self._temporal: int = self.video_processor.temporal_patch_size
        self._patch: int = self.video_processor.patch_size
        self._factor: int = self._patch * self.video_processor.merge_size

    @property
    def identity(self) -> str:
        """Differs where videos are sampled or resized otherwise."""
        return f"{self.video_processor.to_json_string()}{self._settings}"

    def plan(self, ref: VideoRef) -> VideoPlan:
        """Decide on frames and size; of a file only the header is read.

        Raises:
            VideoError: If the video cannot be used, or not be shown in so few tokens.
        """
        info = video_info(ref)
        numbers, size = self._within_budget(info, self._sample(info, fps=ref.fps or self._settings.fps))
        sampled_fps = len(numbers) / len(info.frames) * info.fps
        grid = [self._groups(len(numbers)), *(side // self._patch for side in size)]
        seconds = self._temporal / sampled_fps
        return VideoPlan(tuple(numbers), info.fps, sampled_fps, size, torch.tensor(grid), seconds)

    def text(self, plan: VideoPlan) -> str:
        """What the checkpoint's processor writes in the place of a video's placeholder."""
        metadata = VideoMetadata(
            total_num_frames=len(plan.numbers), fps=plan.fps, frames_indices=list(plan.numbers)
        )
        shown = {"video_grid_thw": plan.grid_thw[None], "video_metadata": [metadata]}
        return self._processor.replace_video_token(shown, 0)

    def pixels(self, ref: VideoRef, plan: VideoPlan) -> torch.Tensor:
        """Decode the frames of a plan, of which one at a time is held in its full size.

        Returns:
            [patches, values a patch] `pixel_values_videos`.

        Raises:
            VideoError: If a frame cannot be read.
        """
        size = SizeDict(height=plan.size[0], width=plan.size[1])
        resample = self.video_processor.resample
        resized = [
            TorchvisionBackend.resize(self.video_processor, _channels_first(frame), size, resample)
            for frame in read_frames(ref, plan.numbers)
        ]
        made = self.video_processor(
            [torch.cat(resized)],
            do_resize=False,
            do_sample_frames=False,
            cap_pixels_per_frame=False,
            input_data_format="channels_first",
            return_tensors="pt",
        )
        return made["pixel_values_videos"]

    def _sample(self, info: VideoInfo, **rate: float) -> Sequence[int]:
        """Numbers of the frames that the processor samples, at so many `fps` or `num_frames` in all."""
        metadata = VideoMetadata(total_num_frames=len(info.frames), fps=info.fps)
        return [info.frames[int(place)] for place in self.video_processor.sample_frames(metadata, **rate)]

    def _within_budget(
        self, info: VideoInfo, numbers: Sequence[int]
    ) -> tuple[Sequence[int], tuple[int, int]]:
        """Frames and their size, in no more tokens than allowed."""
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
        """(height, width) that the processor gives `count` frames, of at most so many pixels each."""
        limits = self.video_processor.size
        whole = isinstance(
            self.video_processor, Qwen3VLVideoProcessor
        )  # its limits are of all frames together
        longest = limits["longest_edge"]
        if max_pixels is not None:
            longest = min(longest, max_pixels * count if whole else max_pixels)
        bounds = {"min_pixels": min(limits["shortest_edge"], longest), "max_pixels": longest}
        if whole:
            shape = {"temporal_factor": self._temporal, "factor": self._factor}
            return resize_video(count, info.height, info.width, **shape, **bounds)
        return resize_frame(info.height, info.width, self._factor, **bounds)

    def _tokens(self, count: int, size: tuple[int, int]) -> int:
        return self._groups(count) * size[0] * size[1] // self._factor**2

    def _groups(self, count: int) -> int:
        """Frames are put together in pairs; the last is doubled where it has no other."""
        return -(-count // self._temporal)


def _channels_first(frame: np.ndarray) -> torch.Tensor:
    """[1, 3, height, width]."""
    return torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous()
