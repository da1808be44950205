"""Turn messages into tokens, loss mask and images, as the checkpoint's own template and processor do it.

One `Renderer` serves training, rollouts and evaluation, so that all of them show the model the same ids and
the same pixels. `chat_templates` decides which template is used, and `dialogue_text` writes the text.

Assistant turns are tokenised on their own, because that is how a model writes them: its first token follows
the generation prompt. transformers tokenises the dialogue in one go, which differs in exactly one case: if an
assistant's text begins with white space that holds a line break, this fuses with the header's line break into
a token that the model never gets to choose.
"""

import copy
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from posttrain.config import ModelConfig
from posttrain.rendering.chat_templates import training_template
from posttrain.rendering.dialogue_text import DialogueText
from posttrain.rendering.pixel_limits import PixelLimits, pixel_limits
from posttrain.rendering.pixel_making import PixelMaker
from posttrain.rendering.pixels import HeaderSizes, PixelCache
from posttrain.rendering.processors import TextTokenizer
from posttrain.rendering.regions import with_regions_written
from posttrain.rendering.rendered import (
    ImageTokens,
    Rendered,
    VideoTokens,
    expand,
)
from posttrain.rendering.video_frames import VideoFrames, VideoSettings
from posttrain.types import (
    FAMILY_TOOL_FORMATS,
    ImageRef,
    Message,
    ModelFamily,
    ToolFormat,
    ToolSpec,
    VideoRef,
)

#: In place of a text model's image and video placeholders; no token has this id.
NO_TOKEN = -1


class Renderer:
    """Renders dialogues for one checkpoint.

    Attributes:
        processor: transformers' processor of the checkpoint, or the tokenizer of a text model, with the chat
            template in use; `save_model` writes it beside the weights.
        tokenizer: The checkpoint's tokenizer.
        family: The model family.
        end_token_id: The token that ends a turn (`<|im_end|>`).
        image_token_id: The image placeholder, or NO_TOKEN for a text model.
        video_token_id: The video placeholder, or NO_TOKEN for a text model.
        videos: Samples and resizes videos; a text model has none.
        media: Loads images and videos; a text model has none.
        text: Writes dialogues as text, and refuses those that it cannot write.
        pad_token_id: The token that batches are padded with.
        banned_token_ids: Control tokens that must never be sampled, vision placeholders among them.
        stops: Texts at which sampling stops in a dialogue with tools, beside the end token.

    Example:
        renderer = Renderer.from_config("runs/quickstart/sft/checkpoint-200", config.model)
        prompt = renderer.render(sample.messages, tools=[zoom.spec], add_generation_prompt=True)
    """

    def __init__(
        self,
        processor: ProcessorMixin | PreTrainedTokenizerBase,
        family: ModelFamily,
        limits: PixelLimits | None = None,
        earlier_thinking: Literal["keep", "strip"] = "keep",
        videos: VideoSettings = VideoSettings(),  # noqa: B008 (it is frozen)
        pixel_dtype: torch.dtype = torch.float32,
        tool_format: ToolFormat | None = None,
    ):
        """Learn the dialogue format of a processor.

        Args:
            processor: A Qwen-VL processor, or a text model's tokenizer; it is not changed.
            family: The model family, which decides which control tokens an assistant turn may contain.
            limits: Memory and threads for the pixels of images and videos; those of `pixel_limits` if None.
            earlier_thinking: What happens to `<think>…</think>` before the last user message. `keep` keeps
                it, so that a dialogue's tokens are a prefix of the longer dialogue's. `strip` removes it, as
                Qwen3's published templates do; such a turn is not what the model would write, so it is not
                learned from unless its message says `train: true`.
            videos: How videos are sampled.
            pixel_dtype: Type of the pixels; see `PixelMaker`.
            tool_format: How the model calls tools; as its family was trained to if None.

        Raises:
            RenderError: If the template does not mark assistant turns by a header and an end token.
        """
        self._earlier_thinking = earlier_thinking
        self.processor: Any = copy.copy(processor)
        self.processor.chat_template = training_template(self.processor, family)
        self.family: ModelFamily = family
        placeholders: dict[str, str] = {}
        if family == "text":
            self.tokenizer: TextTokenizer = self.processor
            self.end_token_id: int = self.processor.eos_token_id
            self.image_token_id: int = NO_TOKEN
            self.video_token_id: int = NO_TOKEN
        else:
            self.tokenizer = self.processor.tokenizer
            id_of = self.processor.tokenizer.convert_tokens_to_ids
            self.end_token_id = id_of("<|im_end|>")
            self.image_token_id = id_of(self.processor.image_token)
            self.video_token_id = id_of(self.processor.video_token)
            placeholders = {"image": self.processor.image_token, "video": self.processor.video_token}
            self.videos = VideoFrames(self.processor, videos)
            self.processor.video_processor = self.videos.video_processor
            self._merged_patches: int = self.processor.image_processor.merge_size**2
            self._limits = limits or pixel_limits()
            self._maker = PixelMaker(self.processor.image_processor, self.videos, dtype=pixel_dtype)
            self.media = PixelCache(self._maker, self._limits)
            self._sizes: PixelCache | HeaderSizes = self.media
        padding = self.tokenizer.pad_token_id
        self.pad_token_id: int = self.end_token_id if padding is None else padding
        self._tool_format: ToolFormat = tool_format or FAMILY_TOOL_FORMATS[family]
        how = (family, self.end_token_id, placeholders, earlier_thinking == "strip", self._tool_format)
        self.text = DialogueText(self.processor, self.tokenizer, *how)
        self.banned_token_ids = self.text.banned_token_ids
        self.stops = () if self.text.calls is None else (self.text.calls.stop,)

    @functools.cached_property
    def identity(self) -> str:
        """Hash all that decides how a dialogue is written and tokenised, and how large images are."""
        sees = self.family != "text"
        seen = (self.processor.image_processor.to_json_string(), self.videos.identity) if sees else ()
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        how = (self.family, self._earlier_thinking, self._tool_format)
        parts = (*how, self.processor.chat_template, tokenizer, *seen)
        return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: Path | str,
        family: ModelFamily,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        earlier_thinking: Literal["keep", "strip"] = "keep",
        videos: VideoSettings = VideoSettings(),  # noqa: B008 (it is frozen)
        pixel_dtype: torch.dtype = torch.float32,
        tool_format: ToolFormat | None = None,
    ) -> "Renderer":
        """Load a checkpoint's processor.

        Args:
            checkpoint: A checkpoint's directory, or Hugging Face id.
            family: The model family.
            min_pixels: Fewest pixels that an image is resized to; the checkpoint's own value if None.
            max_pixels: Most pixels that an image is resized to; the checkpoint's own value if None.
            earlier_thinking: As for `Renderer`.
            videos: How videos are sampled.
            pixel_dtype: Type of the pixels; see `PixelMaker`.
            tool_format: As for `Renderer`.
        """
        processor = _load_processor(checkpoint, family, min_pixels, max_pixels)
        return cls(processor, family, None, earlier_thinking, videos, pixel_dtype, tool_format)

    @classmethod
    def from_config(cls, checkpoint: Path | str, model: ModelConfig) -> "Renderer":
        """Load a checkpoint's processor with the settings of a run.

        Args:
            checkpoint: A checkpoint's directory, or Hugging Face id.
            model: The run's model section.
        """
        family, sizes = model.family_of(checkpoint), (model.min_pixels, model.max_pixels)
        videos = VideoSettings(
            model.video_fps, model.video_max_frames, model.video_max_tokens, model.video_max_pixels
        )
        dtype: torch.dtype = getattr(torch, model.dtype)
        how = (model.earlier_thinking, videos, dtype, model.tool_format)
        return cls.from_pretrained(checkpoint, family, *sizes, *how)

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), add_generation_prompt: bool = False
    ) -> Rendered:
        """Tokenise a dialogue.

        Args:
            messages: The dialogue so far.
            tools: Tools to announce.
            add_generation_prompt: Whether to end with the header of the assistant's next turn.

        Raises:
            RenderError: If a text contains control tokens, or the template cannot express the dialogue.
            ImageError: If an image cannot be read.
            VideoError: If a video cannot be read.
        """
        return self._encode(
            self.text.write(self.with_regions(messages), tools, add_generation_prompt), messages
        )

    def with_regions(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return messages in which the parts of images that they name are texts, as the family writes them.

        Raises:
            RenderError: If there are some, and it is a text model.
            ImageError: If an image of theirs cannot be read.
        """
        sizes = None if self.family == "text" else self._maker.sizes
        return with_regions_written(messages, self.family, sizes)

    def observation(self, *messages: Message, turn: Sequence[int] = ()) -> Rendered:
        """Tokenise what follows an assistant's turn: a tool's or a user's reply, and the next turn's header.

        The ids of a dialogue followed by these are those of rendering the whole dialogue again.

        Args:
            messages: The results, one for each call, or the reply.
            turn: The turn's ids, as they were sampled; only needed where sampling stops at `stops`.

        Raises:
            RenderError: If a text contains control tokens, or the template cannot express it.
            ImageError: If an image cannot be read.
        """
        stopped = None
        if self.text.calls is not None and turn and turn[-1] != self.end_token_id:
            stopped = self.text.calls.stopped_with(_sampled_text(self, turn)) or ""
        return self._encode([(self.text.reply(messages, stopped), False)], messages)

    def decode(self, token_ids: Sequence[int], *, continues: bool = False) -> str:
        """Return the text of a sampled turn, with the opening of the prompt and without the end token.

        Its calls are in the one form that messages have; `continues` says that it follows results of calls.
        """
        text = self.text.opening + _sampled_text(self, token_ids)
        return text if self.text.calls is None else self.text.calls.read(text, continues=continues)

    def pixels(self, ref: ImageRef) -> tuple[torch.Tensor, torch.Tensor]:
        """Load an image as the vision tower takes it, resized by the checkpoint's image processor alone.

        Returns:
            `pixel_values` [patches, values per patch] and `image_grid_thw` [3], which must not be changed.

        Raises:
            ImageChangedError: If the file's pixels do not match the reference's hash.
            ImageError: If the file cannot be read.
        """
        found = self.media.load(ref)
        return self.media.patches(found), found.grid_thw

    def counting(self) -> "Renderer":
        """Return a renderer that decodes nothing: it finds the lengths by the headers of images and videos.

        The images and videos of its results have no hashes but those that they had before.
        """
        other = copy.copy(self)
        if self.family != "text":
            other._sizes = HeaderSizes(self._maker)
        return other

    def on(self, device: torch.device | str) -> "Renderer":
        """Return a renderer whose pixels are made on a device, from bytes that are kept on the host."""
        other = copy.copy(self)
        if self.family != "text":
            other._maker = self._maker.on(device)
            other.media = other._sizes = PixelCache(other._maker, self._limits)
        return other

    def num_image_tokens(self, grid_thw: torch.Tensor) -> int:
        """Compute the number of placeholder tokens of [3] patches along time, height and width."""
        return int(grid_thw.prod()) // self._merged_patches

    def _encode(self, parts: Sequence[tuple[str, bool]], messages: Sequence[Message]) -> Rendered:
        """Tokenise texts, each on its own, and expand the placeholders of the messages' images and videos."""
        encoded = self.tokenizer([text for text, _ in parts], add_special_tokens=False)["input_ids"]
        ids = [token for piece in encoded for token in piece]
        supervised = [learned for (_, learned), piece in zip(parts, encoded, strict=True) for _ in piece]
        images = [ref for message in messages for ref in message.images]
        videos = [ref for message in messages for ref in message.videos]
        return expand(
            ids,
            supervised,
            (self.image_token_id, map(self._image_tokens, images)),
            (self.video_token_id, map(self._video_tokens, videos)),
        )

    def _image_tokens(self, ref: ImageRef) -> ImageTokens:
        """Return an image, and its number of placeholders."""
        image, patches = self._sizes.size(ref)
        return image, patches // self._merged_patches

    def _video_tokens(self, ref: VideoRef) -> VideoTokens:
        """Return a video, and its tokens; these follow from its header, without decoding it."""
        text = self.videos.text(self.videos.plan(ref))
        [ids] = self.tokenizer([text], add_special_tokens=False)["input_ids"]
        return self._sizes.known_video(ref), ids


def _load_processor(
    checkpoint: Path | str, family: ModelFamily, min_pixels: int | None, max_pixels: int | None
) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Load a checkpoint's processor with other sizes of images, or a text model's tokenizer."""
    if family == "text":
        return AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(str(checkpoint), trust_remote_code=False)
    size = processor.image_processor.size
    processor.image_processor.size = {
        "shortest_edge": size["shortest_edge"] if min_pixels is None else min_pixels,
        "longest_edge": size["longest_edge"] if max_pixels is None else max_pixels,
    }
    return processor


def _sampled_text(renderer: Renderer, token_ids: Sequence[int]) -> str:
    """Return what a turn's ids say, without the end token."""
    ids = list(token_ids)
    if ids and ids[-1] == renderer.end_token_id:
        ids.pop()
    return renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
