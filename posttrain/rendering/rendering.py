"""Turn messages into tokens, loss mask and images, as the checkpoint's own template and processor do it.

One `Renderer` serves training, rollouts and evaluation, so that all of them show the model the same ids and
the same pixels. `chat_templates` decides which template is used, and `dialogue_text` writes the text.

Assistant turns are tokenised on their own, because that is how a model writes them: its first token follows
the generation prompt. transformers tokenises the dialogue in one go, which differs in exactly one case: if an
assistant's text begins with white space that holds a line break, this fuses with the header's line break into
a token that the model never gets to choose.
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from posttrain.config import ModelConfig
from posttrain.rendering.chat_templates import training_template, without_earlier_thinking
from posttrain.rendering.dialogue_text import DialogueText
from posttrain.rendering.pixels import ImageSizes, PixelCache, Pixels
from posttrain.rendering.processors import TextTokenizer
from posttrain.rendering.rendered import ImageTokens, Rendered, RenderError, VideoTokens, expand
from posttrain.rendering.video_frames import VideoFrames, VideoSettings
from posttrain.types import ImageRef, Message, ModelFamily, ToolSpec, VideoRef

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
        pad_token_id: The token that batches are padded with.
        banned_token_ids: Control tokens that must never be sampled, vision placeholders among them.

    Example:
        renderer = Renderer.from_config("runs/quickstart/sft/checkpoint-200", config.model)
        prompt = renderer.render(sample.messages, tools=[zoom.spec], add_generation_prompt=True)
    """

    def __init__(
        self,
        processor: ProcessorMixin | PreTrainedTokenizerBase,
        family: ModelFamily,
        cache_bytes: int = 512 * 2**20,
        earlier_thinking: Literal["keep", "strip"] = "keep",
        videos: VideoSettings = VideoSettings(),  # noqa: B008 (it is frozen)
    ):
        """Learn the dialogue format of a processor.

        Args:
            processor: A Qwen-VL processor, or a text model's tokenizer; it is not changed.
            family: The model family, which decides which control tokens an assistant turn may contain.
            cache_bytes: Most memory that pre-processed images and videos may take, in bytes.
            earlier_thinking: What happens to `<think>…</think>` before the last user message. `keep` keeps
                it, so that a dialogue's tokens are a prefix of the longer dialogue's. `strip` removes it, as
                Qwen3's published templates do; such a turn is not what the model would write, so it is not
                learned from unless its message says `train: true`.
            videos: How videos are sampled.

        Raises:
            RenderError: If the template does not mark assistant turns by a header and an end token.
        """
        self.processor: Any = copy.copy(processor)
        self.processor.chat_template = training_template(self.processor, family)
        self.family: ModelFamily = family
        self._strips_thinking = earlier_thinking == "strip"
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
            self.videos = VideoFrames(self.processor, videos)
            self.processor.video_processor = self.videos.video_processor
            self._merged_patches: int = self.processor.image_processor.merge_size**2
            self._pixels = PixelCache(self.processor.image_processor, self.videos, cache_bytes)
        padding = self.tokenizer.pad_token_id
        self.pad_token_id: int = self.end_token_id if padding is None else padding
        self._text = DialogueText(self.processor, self.tokenizer, family, self.end_token_id)
        self.banned_token_ids = self._text.banned_token_ids

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: Path | str,
        family: ModelFamily,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        earlier_thinking: Literal["keep", "strip"] = "keep",
        videos: VideoSettings = VideoSettings(),  # noqa: B008 (it is frozen)
    ) -> "Renderer":
        """Load a checkpoint's processor.

        Args:
            checkpoint: A checkpoint's directory, or Hugging Face id.
            family: The model family.
            min_pixels: Fewest pixels that an image is resized to; the checkpoint's own value if None.
            max_pixels: Most pixels that an image is resized to; the checkpoint's own value if None.
            earlier_thinking: As for `Renderer`.
            videos: How videos are sampled.
        """
        if family == "text":
            tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=False)
            return cls(tokenizer, family, earlier_thinking=earlier_thinking)
        processor = AutoProcessor.from_pretrained(str(checkpoint), trust_remote_code=False)
        size = processor.image_processor.size
        processor.image_processor.size = {
            "shortest_edge": size["shortest_edge"] if min_pixels is None else min_pixels,
            "longest_edge": size["longest_edge"] if max_pixels is None else max_pixels,
        }
        return cls(processor, family, earlier_thinking=earlier_thinking, videos=videos)

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
        return cls.from_pretrained(checkpoint, family, *sizes, model.earlier_thinking, videos)

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
        if not messages:
            raise RenderError("the dialogue has no messages")
        self._text.check(messages, tools)
        if self._strips_thinking:
            messages = without_earlier_thinking(messages)
        return self._encode(self._text.parts(messages, tools, add_generation_prompt), messages)

    def observation(self, message: Message) -> Rendered:
        """Tokenise what follows an assistant's end-of-turn token: a reply, and the header of the next turn.

        The ids of a dialogue followed by these are those of rendering the whole dialogue again.

        Args:
            message: The reply of a tool or a user.

        Raises:
            RenderError: If its text contains control tokens, or the template cannot express it.
            ImageError: If an image cannot be read.
        """
        self._text.check([message])
        return self._encode([(self._text.reply(message), False)], [message])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a sampled turn, with the opening that the prompt wrote, without the end token.

        Args:
            token_ids: The sampled ids.
        """
        ids = list(token_ids)
        if ids and ids[-1] == self.end_token_id:
            ids.pop()
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self._text.opening + text

    def pixels(self, ref: ImageRef) -> tuple[torch.Tensor, torch.Tensor]:
        """Load an image as the vision tower takes it, resized by the checkpoint's image processor alone.

        Args:
            ref: The image; if it has a hash, the file must still match it.

        Returns:
            `pixel_values` [patches, values per patch] and `image_grid_thw` [3], which must not be changed.

        Raises:
            ImageChangedError: If the file's pixels do not match the reference's hash.
            ImageError: If the file cannot be read.
        """
        found = self._pixels.load(ref)
        return found.values, found.grid_thw

    def counting(self) -> "Renderer":
        """Return a renderer whose results have the right length but no hashes, and which decodes no image."""
        other = copy.copy(self)
        if self.family != "text":
            other._pixels = ImageSizes(self.processor.image_processor, self.videos, max_bytes=0)
        return other

    def video_pixels(self, ref: VideoRef) -> Pixels:
        """Load a video as the vision tower takes it.

        Raises:
            ImageChangedError: If the files do not match the reference's hash.
            VideoError: If the video cannot be read.
        """
        return self._pixels.load_video(ref)

    def num_image_tokens(self, grid_thw: torch.Tensor) -> int:
        """Compute the number of placeholder tokens (merged patches) of an image or video.

        Args:
            grid_thw: [3] patches along time, height and width.
        """
        return int(grid_thw.prod()) // self._merged_patches

    def _encode(self, parts: Sequence[tuple[str, bool]], messages: Sequence[Message]) -> Rendered:
        """Tokenise the parts, each on its own, and expand the placeholders.

        Args:
            parts: Texts, and for each whether it is learned from.
            messages: The messages, whose images and videos have placeholders in these texts.
        """
        encoded = self.tokenizer([text for text, _ in parts], add_special_tokens=False)["input_ids"]
        ids = [token for piece in encoded for token in piece]
        supervised = [learned for (_, learned), piece in zip(parts, encoded, strict=True) for _ in piece]
        images = [ref for message in messages for ref in message.images]
        videos = [ref for message in messages for ref in message.videos]
        for token, refs, noun in (
            (self.image_token_id, images, "image"),
            (self.video_token_id, videos, "video"),
        ):
            if ids.count(token) != len(refs):
                raise RenderError(
                    f"the chat template wrote {ids.count(token)} {noun} placeholders for {len(refs)} {noun}s;"
                    " it shows them in user and tool messages only"
                )
        return expand(
            ids,
            supervised,
            (self.image_token_id, map(self._image_tokens, images)),
            (self.video_token_id, map(self._video_tokens, videos)),
        )

    def _image_tokens(self, ref: ImageRef) -> ImageTokens:
        """Return an image with its hash, and its number of placeholders."""
        image = self._pixels.load(ref)
        return ImageRef(ref.path, image.sha256), self.num_image_tokens(image.grid_thw)

    def _video_tokens(self, ref: VideoRef) -> VideoTokens:
        """Return a video with its hash, and its tokens; these follow from its header, without decoding it."""
        text = self.videos.text(self.videos.plan(ref))
        [ids] = self.tokenizer([text], add_special_tokens=False)["input_ids"]
        return dataclasses.replace(ref, sha256=self._pixels.hash_video(ref)), ids
