"""From the file of an image or video to the patches of the vision tower.

The work is cut in two. What needs the file (decoding, hashing, resizing) is done on the CPU by any thread, so
that everyone sees the same pixels; the result has 8 bits a value. Normalising and cutting into patches makes
twice as many values, of 2 or 4 bytes; it is done where the model is.
"""

from dataclasses import dataclass

import torch
from torchvision.transforms.v2 import functional
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from posttrain.media.images import open_image, pixel_hash, shown_size
from posttrain.rendering.processors import ImageProcessor
from posttrain.rendering.video_frames import VideoFrames
from posttrain.types import ImageRef, VideoRef

CHANNELS = 3
#: Patches that are normalised at once on a CPU: few enough to stay in its cache.
PATCHES_AT_ONCE = 512


@dataclass(frozen=True)
class Pixels:
    """A pre-processed image or video, which must not be changed because it is shared.

    Attributes:
        values: For a model on the CPU the patches, [patches, values per patch] `pixel_values` or
            `pixel_values_videos`; for one on a GPU the resized bytes, [3, height, width] of an image and
            [frames, 3, height, width] of a video.
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
        """Return the bytes of the `Pixels` that a number of placeholder tokens stands for."""
        processor = self._image_processor
        patches = tokens * processor.merge_size**2
        values = CHANNELS * processor.temporal_patch_size * processor.patch_size**2
        return patches * values * (self._dtype.itemsize if self._device.type == "cpu" else 1)

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
        return self._kept_form(Pixels(resized, torch.tensor([1, height, width]), pixel_hash(image)))

    def video(self, ref: VideoRef, sha256: str) -> Pixels:
        """Sample, decode and resize a video whose hash is known.

        Raises:
            VideoError: If the video cannot be read.
        """
        plan = self._frames.plan(ref)
        frames = self._frames.resized(ref, plan)
        return self._kept_form(Pixels(frames, plan.grid_thw, sha256, plan.seconds_per_grid))

    def patches(self, pixels: Pixels) -> torch.Tensor:
        """Return [patches, values per patch] of pixels that this object has made, on the device."""
        if pixels.values.dtype != torch.uint8:
            return pixels.values
        if pixels.values.dim() == 4:
            return self._frames.patches(pixels.values, self._device).to(self._dtype)
        return self._image_patches(pixels.values.to(self._device))

    def _image_patches(self, resized: torch.Tensor) -> torch.Tensor:
        """Cut a resized image [3, height, width] into patches, then normalise these.

        The processor does it the other way round, in twice the time: it moves floats instead of bytes. The
        values are the same, since each is normalised by itself.
        """
        processor = self._image_processor
        side, copies = processor.patch_size, processor.temporal_patch_size
        cut, _, _ = processor.patchify(
            resized[None], patch_size=side, merge_size=processor.merge_size, temporal_patch_size=1
        )
        cut = cut.view(-1, CHANNELS, side, side)
        made = torch.empty((len(cut), CHANNELS, copies, side, side), dtype=self._dtype, device=self._device)
        rows = PATCHES_AT_ONCE if self._device.type == "cpu" else len(cut)
        for start in range(0, len(cut), rows):
            made[start : start + rows] = processor.rescale_and_normalize(
                cut[start : start + rows],
                do_rescale=processor.do_rescale,
                rescale_factor=processor.rescale_factor,
                do_normalize=processor.do_normalize,
                image_mean=tuple(processor.image_mean),
                image_std=tuple(processor.image_std),
            )[:, :, None]
        return made.flatten(1)

    def _kept_form(self, pixels: Pixels) -> Pixels:
        """Return pixels as they are kept on the host: all done, if the model is there too."""
        if self._device.type != "cpu":
            return pixels
        return Pixels(self.patches(pixels), pixels.grid_thw, pixels.sha256, pixels.seconds_per_grid)
