"""From the file of an image or video to the patches of the vision tower.

The work is cut in two. What needs the file (decoding, hashing, resizing) is done on the CPU by any thread, so
that everyone sees the same pixels; the result has 8 bits a value, and is what is kept. Normalising and
cutting into patches makes twice as many values, of 2 or 4 bytes, so 8 times as much in float32; it is done
where the model is, when the vision tower is about to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchvision.transforms.v2 import functional
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from posttrain.media.images import open_image, pixel_hash, shown_size
from posttrain.media.videos import video_hash
from posttrain.rendering.processors import ImageProcessor, VideoProcessor
from posttrain.rendering.video_frames import VideoFrames
from posttrain.types import ImageRef, VideoRef

CHANNELS = 3
#: Patches that are normalised at once on a CPU: few enough to stay in its cache.
PATCHES_AT_ONCE = 512


@dataclass(frozen=True)
class ImagePatches:
    """Makes the patches of images from their resized bytes; it can be sent to another process.

    Attributes:
        image_processor: The checkpoint's own.
        dtype: Type of the patches.
    """

    image_processor: ImageProcessor
    dtype: torch.dtype

    def __call__(self, images: Sequence[torch.Tensor], device: torch.device | str) -> torch.Tensor:
        """Cut resized images, each [3, height, width] bytes, into patches, then normalise these.

        The processor does it the other way round, in twice the time: it moves floats instead of bytes. The
        values are the same, since each is normalised by itself.

        Returns:
            [patches of all images, values per patch] on the device.
        """
        processor, device = self.image_processor, torch.device(device)
        side, copies = processor.patch_size, processor.temporal_patch_size
        count = sum(image.shape[1] * image.shape[2] for image in images) // side**2
        made = torch.empty((count, CHANNELS, copies, side, side), dtype=self.dtype, device=device)
        start = 0
        for image in images:
            cut, _, _ = processor.patchify(
                image.to(device)[None],
                patch_size=side,
                merge_size=processor.merge_size,
                temporal_patch_size=1,
            )
            for piece in cut.view(-1, CHANNELS, side, side).split(
                PATCHES_AT_ONCE if device.type == "cpu" else count
            ):
                made[start : start + len(piece)] = processor.rescale_and_normalize(
                    piece,
                    do_rescale=processor.do_rescale,
                    rescale_factor=processor.rescale_factor,
                    do_normalize=processor.do_normalize,
                    image_mean=tuple(processor.image_mean),
                    image_std=tuple(processor.image_std),
                )[:, :, None]
                start += len(piece)
        return made.flatten(1)


@dataclass(frozen=True)
class VideoPatches:
    """Makes the patches of videos from their resized bytes; it can be sent to another process.

    Attributes:
        video_processor: The checkpoint's own.
        dtype: Type of the patches.
    """

    video_processor: VideoProcessor
    dtype: torch.dtype

    def __call__(self, videos: Sequence[torch.Tensor], device: torch.device | str) -> torch.Tensor:
        """Normalise resized videos, each [frames, 3, height, width] bytes, and cut them into patches.

        Returns:
            [patches of all videos, values per patch] on the device.
        """
        made = [
            self.video_processor(
                [frames],
                do_resize=False,
                do_sample_frames=False,
                cap_pixels_per_frame=False,
                input_data_format="channels_first",
                device=torch.device(device),
                return_tensors="pt",
            )["pixel_values_videos"].to(self.dtype)
            for frames in videos
        ]
        return made[0] if len(made) == 1 else torch.cat(made)


@dataclass(frozen=True)
class Pixels:
    """A pre-processed image or video, which must not be changed because it is shared.

    Attributes:
        values: The resized bytes: [3, height, width] of an image, [frames, 3, height, width] of a video.
        grid_thw: [3] number of patches along time, height and width.
        sha256: Hash of an image's original pixels, or of a video's files.
        seconds_per_grid: Seconds from one pair of a video's frames to the next.
    """

    values: torch.Tensor
    grid_thw: torch.Tensor
    sha256: str
    seconds_per_grid: float = 0.0


class PixelMaker:
    """Makes the pixels of images and videos as the checkpoint's own processors do; any thread may call it.

    Attributes:
        image_patches: Makes the patches of images from their resized bytes.
        video_patches: Likewise of videos.

    Args:
        image_processor: The checkpoint's own.
        frames: Samples and resizes videos.
        device: Where patches are made.
        dtype: Type of the patches. The vision towers turn them to the type of their weights before anything
            else, so a model of bfloat16 is given bfloat16 with the same result.
    """

    def __init__(
        self,
        image_processor: ImageProcessor,
        frames: VideoFrames,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self._image_processor = image_processor
        self._frames = frames
        self._device = torch.device(device)
        self._dtype = dtype
        self.image_patches = ImagePatches(image_processor, dtype)
        self.video_patches = VideoPatches(frames.video_processor, dtype)

    def on(self, device: torch.device | str) -> "PixelMaker":
        """Return one that makes patches on another device."""
        return PixelMaker(self._image_processor, self._frames, device, self._dtype)

    def num_patches(self, width: int, height: int) -> int:
        """Return the number of patches that an image of a size is cut into."""
        return self._image_processor.get_number_of_image_patches(height, width)

    def sizes(self, ref: ImageRef) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (width, height) of an image as a viewer shows it, and of what it is resized to.

        Raises:
            ImageError: If the image cannot be read.
        """
        (width, height), processor = shown_size(ref.path), self._image_processor
        limits = {"min_pixels": processor.size["shortest_edge"], "max_pixels": processor.size["longest_edge"]}
        sides = smart_resize(height, width, processor.patch_size * processor.merge_size, **limits)
        return (width, height), (sides[1], sides[0])

    def nbytes(self, tokens: int) -> int:
        """Return the bytes of an image's `Pixels` that a number of placeholder tokens stands for."""
        processor = self._image_processor
        return tokens * processor.merge_size**2 * CHANNELS * processor.patch_size**2

    def video_nbytes(self, tokens: int) -> int:
        """Return the bytes of a video's `Pixels`; a token of it stands for several frames."""
        return self.nbytes(tokens) * self._image_processor.temporal_patch_size

    def image(self, path: str) -> Pixels:
        """Decode, hash and resize an image.

        Raises:
            ImageError: If the file cannot be read as an image.
        """
        image, processor = open_image(path), self._image_processor
        resized = processor.resize(
            images=functional.pil_to_tensor(image)[None].contiguous(),
            size=SizeDict(**dict(processor.size)),
            resample=processor.resample,
            factor=processor.patch_size * processor.merge_size,
        )[0]
        height, width = (side // processor.patch_size for side in resized.shape[1:])
        return Pixels(resized, torch.tensor([1, height, width]), pixel_hash(image))

    def video(self, ref: VideoRef, sha256: str = "") -> Pixels:
        """Sample, decode and resize a video; its files are read once more where their hash is not given.

        Raises:
            VideoError: If the video cannot be read.
        """
        sha256 = sha256 or video_hash(ref)
        plan = self._frames.plan(ref)
        frames = self._frames.resized(ref, plan)
        return Pixels(frames, plan.grid_thw, sha256, plan.seconds_per_grid)

    def patches(self, pixels: Pixels) -> torch.Tensor:
        """Return [patches, values per patch] of pixels that this object has made, on the device."""
        make = self.video_patches if pixels.values.dim() == 4 else self.image_patches
        return make([pixels.values], self._device)
