"""What is used of transformers' processors and tokenizers, whose own methods carry few types."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from transformers.image_utils import SizeDict
from transformers.video_utils import VideoMetadata


class TextTokenizer(Protocol):
    """A checkpoint's tokenizer.

    Attributes:
        added_tokens_decoder: Control tokens and other added tokens, by id.
        backend_tokenizer: The tokenizer as the `tokenizers` library has it.
        pad_token_id: The padding token, if there is one.
    """

    added_tokens_decoder: Mapping[int, AddedToken]
    backend_tokenizer: Tokenizer
    pad_token_id: int | None

    def __len__(self) -> int:
        """Return the size of the vocabulary, added tokens included."""
        ...

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]:
        """Tokenise texts; their ids are the value of "input_ids"."""
        ...

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Return the text of token ids."""
        ...

    def convert_ids_to_tokens(self, ids: int) -> str:
        """Return the token of an id."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        ...


class ImageProcessor(Protocol):
    """A checkpoint's image processor, of those that work on tensors.

    Attributes:
        patch_size: Side of a patch in pixels.
        temporal_patch_size: Copies of an image that become one grid of patches.
        merge_size: Patches along each side of an image that become one token.
        size: Limits of the pixels, as `shortest_edge` and `longest_edge`.
        resample: Number of the interpolation method.
        do_rescale: Whether bytes are multiplied by `rescale_factor`.
        rescale_factor: Brings bytes to the range from 0 to 1.
        do_normalize: Whether `image_mean` is subtracted, and the result divided by `image_std`.
        image_mean: Mean of each channel.
        image_std: Standard deviation of each channel.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    size: Mapping[str, int]
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: Sequence[float]
    image_std: Sequence[float]

    def __call__(self, *, images: list[Image.Image], return_tensors: str) -> Mapping[str, torch.Tensor]:
        """Return `pixel_values` [patches, values per patch] and `image_grid_thw` [images, 3]."""
        ...

    def resize(self, *, images: torch.Tensor, size: SizeDict, resample: int, factor: int) -> torch.Tensor:
        """Resize images [images, 3, height, width], of bytes, to sides that are multiples of a factor."""
        ...

    def patchify(
        self, images: torch.Tensor, *, patch_size: int, merge_size: int, temporal_patch_size: int
    ) -> tuple[torch.Tensor, int, int]:
        """Cut images into patches [images, patches, values per patch]; return these, rows and columns."""
        ...

    def rescale_and_normalize(
        self,
        images: torch.Tensor,
        *,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
    ) -> torch.Tensor:
        """Turn bytes [..., 3, height, width] into the numbers that the model is used to."""
        ...

    def get_number_of_image_patches(self, height: int, width: int) -> int:
        """Return the number of patches that an image of this size is cut into."""
        ...

    def to_json_string(self) -> str:
        """Return the settings as JSON."""
        ...


class VideoProcessor(Protocol):
    """A checkpoint's video processor.

    Attributes:
        fps: Frames to sample per second.
        max_frames: Most frames to sample.
        min_frames: Fewest frames to sample.
        temporal_patch_size: Frames that become one grid of patches.
        patch_size: Side of a patch in pixels.
        merge_size: Patches along each side of a frame that become one token.
        size: Limits of the pixels, as `shortest_edge` and `longest_edge`.
        resample: Number of the interpolation method.
    """

    fps: float
    max_frames: int
    min_frames: int
    temporal_patch_size: int
    patch_size: int
    merge_size: int
    size: Mapping[str, int]
    resample: int

    def __call__(
        self,
        videos: list[torch.Tensor],
        *,
        do_resize: bool,
        do_sample_frames: bool,
        cap_pixels_per_frame: bool,
        input_data_format: str,
        device: torch.device | None,
        return_tensors: str,
    ) -> Mapping[str, torch.Tensor]:
        """Return `pixel_values_videos` [patches, values per patch]."""
        ...

    def sample_frames(
        self, metadata: VideoMetadata, *, fps: float | None = None, num_frames: int | None = None
    ) -> Sequence[int]:
        """Return the numbers of the frames to show."""
        ...

    def to_json_string(self) -> str:
        """Return the settings as JSON."""
        ...


class TemplateProcessor(Protocol):
    """Something that applies a chat template: a processor, or a text model's tokenizer.

    Attributes:
        chat_template: The Jinja template.
    """

    chat_template: str | None

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None,
        chat_template: str | None = None,
        add_generation_prompt: bool,
        tokenize: bool,
    ) -> str:
        """Return the text of a dialogue (with `tokenize=False`)."""
        ...


class VisionProcessor(Protocol):
    """The part of a Qwen-VL processor that has to do with videos.

    Attributes:
        video_processor: The checkpoint's video processor.
    """

    video_processor: VideoProcessor

    def replace_video_token(self, video_inputs: Mapping[str, object], video_idx: int) -> str:
        """Return the text that takes the place of a video's placeholder."""
        ...
