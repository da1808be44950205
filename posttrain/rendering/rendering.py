"""Messages to tokens, loss mask and images, by the checkpoint's own template, tokenizer and image processor.

One `Renderer` serves training, rollouts and evaluation, so that all of them show the model the same ids and
the same pixels. Everything about the dialogue format is learnt from the chat template by rendering probes
and comparing; nothing of it is written down here a second time. Which template that is, `chat_templates`
decides.

Assistant turns are tokenised on their own, because that is how a model writes them: its first token follows
the generation prompt. transformers tokenises the dialogue in one go, which differs in exactly one case: an
assistant text whose leading white space holds a line break fuses with the header's line break into a token
that the model never gets to choose.
"""

import copy
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from posttrain.config import ModelConfig
from posttrain.rendering.chat_templates import check_text_kept, training_template, without_earlier_thinking
from posttrain.rendering.pixels import ImageSizes, PixelCache, Pixels
from posttrain.rendering.rendered import ImageTokens, Rendered, RenderError, VideoTokens, expand
from posttrain.rendering.video_frames import VideoFrames, VideoSettings
from posttrain.types import ImageRef, Message, ModelFamily, ToolSpec, VideoRef, text_message

#: Control tokens that a family's assistant turns contain as part of their text; all others are refused.
#: Markup such as `<tool_call>` and `<think>` is plain vocabulary to the tokenizer and always allowed.
ASSISTANT_TOKENS: dict[ModelFamily, frozenset[str]] = {
    "qwen2_vl": frozenset(
        f"<|{name}_{side}|>" for name in ("object_ref", "box", "quad") for side in ("start", "end")
    ),
    "qwen2_5_vl": frozenset(),
    "qwen3_vl": frozenset(),
    "text": frozenset(),
}
#: The placeholders of a model that sees nothing: no token has this id.
NO_TOKEN = -1

_PROBE = (text_message("user", "question"), text_message("assistant", "answer"))
_PROBE_TOOL = ToolSpec("probe_of_the_template", "", {"type": "object", "properties": {}})


class Renderer:
    """Renders dialogues for one checkpoint.

    Attributes:
        processor: The checkpoint's processor, with the chat template in use; `save_model` writes it beside
            the weights. A text model's is its tokenizer.
        tokenizer: The processor's.
        family: The model family.
        end_token_id: The token that ends a turn (`<|im_end|>`).
        image_token_id: The image placeholder; NO_TOKEN of a text model.
        video_token_id: The same of videos.
        videos: How videos are sampled; a text model has none.
        pad_token_id: What batches are padded with.
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
        """Learn the template of a processor.

        Args:
            processor: A Qwen-VL processor, or a text model's tokenizer; it stays as it is.
            family: Decides which control tokens an assistant turn may contain.
            cache_bytes: Upper bound of the memory that pre-processed images and videos may hold.
            earlier_thinking: What becomes of `<think>…</think>` before the last user message. `keep`: a
                dialogue's tokens are a prefix of the longer dialogue's. `strip`: as Qwen3's published
                templates; a turn so cut is not what the model would write, so it is not learned from
                unless its message says `train: true`.
            videos: How videos are sampled.

        Raises:
            RenderError: If the template does not mark assistant turns by a header and an end token.
        """
        self.processor: Any = copy.copy(processor)
        self.processor.chat_template = training_template(processor, family)
        self.family: ModelFamily = family
        self._strips_thinking = earlier_thinking == "strip"
        if family == "text":
            self.tokenizer: Any = self.processor
            self.end_token_id: int = self.tokenizer.eos_token_id
            self.image_token_id: int = NO_TOKEN
            self.video_token_id: int = NO_TOKEN
        else:
            self.tokenizer = self.processor.tokenizer
            self.end_token_id = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
            self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.processor.image_token)
            self.video_token_id = self.tokenizer.convert_tokens_to_ids(self.processor.video_token)
            self.videos = VideoFrames(self.processor, videos)
            self.processor.video_processor = self.videos.video_processor
            self._merged_patches: int = self.processor.image_processor.merge_size**2
            self._pixels = PixelCache(self.processor.image_processor, self.videos, cache_bytes)
        padding = self.tokenizer.pad_token_id
        self.pad_token_id: int = self.end_token_id if padding is None else padding
        self._learn_control_tokens()
        self._learn_template()

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
            checkpoint: Directory or Hugging Face id.
            family: The model family.
            min_pixels: Smallest area an image is resized to, in pixels; the checkpoint's own if None.
            max_pixels: Largest area an image is resized to, in pixels; the checkpoint's own if None.
            earlier_thinking: See `Renderer`.
            videos: How videos are sampled.
        """
        if family == "text":
            tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=False)
            return cls(tokenizer, family, earlier_thinking=earlier_thinking)
        processor: Any = AutoProcessor.from_pretrained(str(checkpoint), trust_remote_code=False)
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
            checkpoint: Directory or Hugging Face id.
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
            RenderError: If text contains control tokens, or the template cannot express the dialogue.
            ImageError: If an image cannot be read.
            VideoError: If a video cannot be read.
        """
        if not messages:
            raise RenderError("the dialogue has no messages")
        self._refuse_unsupported_tools(messages, tools)
        self._refuse_control_tokens(messages, tools)
        if self._strips_thinking:
            messages = without_earlier_thinking(messages)
        text = self._apply_template(messages, tools, add_generation_prompt)
        pieces = self._assistant_turn.split(text)
        turns = [message for message in messages if message.role == "assistant"]
        if pieces[1::2] != [turn.text + self._end_token for turn in turns]:
            raise RenderError(
                f"the {self.family} checkpoint's chat template rewrites assistant turns (it may strip <think>"
                " blocks); training needs a template that keeps them (posttrain/rendering/templates)"
            )
        check_text_kept(text, messages)
        parts = self._supervise(pieces, turns)
        return self._encode(parts, messages)

    def observation(self, message: Message) -> Rendered:
        """Tokenise what follows an assistant's end-of-turn token: the reply and the next turn's header.

        Appending these ids to a ledger gives the same tokens as rendering the whole dialogue anew.

        Args:
            message: A tool's or a user's reply.

        Raises:
            RenderError: If its text contains control tokens, or the template cannot express it.
            ImageError: If an image cannot be read.
        """
        self._refuse_unsupported_tools([message])
        self._refuse_control_tokens([message])
        text = self._apply_template([*_PROBE, message], (), add_generation_prompt=True)
        if message.role not in ("tool", "user") or not text.startswith(self._probe_text):
            raise RenderError(f"the chat template cannot append a {message.role} message to a dialogue")
        text = text.removeprefix(self._probe_text)
        check_text_kept(text, [message])
        return self._encode([(text, False)], [message])

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a sampled turn, without its end token and with what the prompt wrote of it."""
        ids = list(token_ids)
        if ids and ids[-1] == self.end_token_id:
            ids.pop()
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self._opening + text

    def pixels(self, ref: ImageRef) -> tuple[torch.Tensor, torch.Tensor]:
        """An image as the vision tower takes it; nothing but the checkpoint's image processor resizes it.

        Args:
            ref: The image; where it has a hash, the file must still match it.

        Returns:
            `pixel_values` [patches, values a patch] and `image_grid_thw` [3], not to be written to.

        Raises:
            ImageChangedError: If the file's pixels do not match the reference's hash.
            ImageError: If the file cannot be read.
        """
        found = self._pixels.load(ref)
        return found.values, found.grid_thw

    def counting(self) -> "Renderer":
        """One whose results have the right length but no hashes, for which no image is decoded."""
        other = copy.copy(self)
        if self.family != "text":
            other._pixels = ImageSizes(self.processor.image_processor, self.videos, max_bytes=0)
        return other

    def video_pixels(self, ref: VideoRef) -> Pixels:
        """A video as the vision tower takes it.

        Raises:
            ImageChangedError: If the files do not match the reference's hash.
            VideoError: If it cannot be read.
        """
        return self._pixels.load_video(ref)

    def num_image_tokens(self, grid_thw: torch.Tensor) -> int:
        """How many placeholder tokens (= merged patches) an image or a video of this grid takes."""
        return int(grid_thw.prod()) // self._merged_patches

    def _learn_control_tokens(self) -> None:
        """Collect what may not occur in text, and what may not be sampled."""
        added = self.tokenizer.added_tokens_decoder
        control = {token.content for token in added.values() if token.special}
        written = ASSISTANT_TOKENS[self.family]
        self._control = _any_of(control)
        self._control_in_assistant = _any_of(control - written)
        # A tool's output may not close its own block and speak for somebody else.
        self._control_in_tool = _any_of(control | {"<tool_response>", "</tool_response>"})
        never = control - written - {self.tokenizer.convert_ids_to_tokens(self.end_token_id)}
        self.banned_token_ids: list[int] = sorted(i for i, token in added.items() if token.content in never)

    def _learn_template(self) -> None:
        """Learn the assistant's header, what prompts write of its turn, and its end, by rendering a probe."""
        self._end_token: str = self.tokenizer.convert_ids_to_tokens(self.end_token_id)
        whole = self._apply_template(_PROBE)
        asked = self._apply_template(_PROBE[:1])
        prompt = self._apply_template(_PROBE[:1], (), add_generation_prompt=True).removeprefix(asked)
        header = whole.removeprefix(asked).partition(_PROBE[1].text)[0]
        self._probe_text = f"{asked}{header}{_PROBE[1].text}{self._end_token}"
        if not header or not prompt.startswith(header) or not whole.startswith(self._probe_text):
            raise RenderError(
                f"the {self.family} checkpoint's chat template does not write an assistant turn as its"
                f" generation prompt {prompt!r}, the text and {self._end_token!r}; training needs one that"
                " does (posttrain/rendering/templates)"
            )
        self._opening = prompt.removeprefix(header)
        # Texts cannot contain control tokens, so a header in the rendering is the template's own.
        self._assistant_turn = re.compile(
            rf"(?<={re.escape(header)})(.*?{re.escape(self._end_token)})", flags=re.DOTALL
        )
        self._renders_tools = _PROBE_TOOL.name in self._apply_template(_PROBE, [_PROBE_TOOL])

    def _apply_template(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), add_generation_prompt: bool = False
    ) -> str:
        conversation = [{"role": each.role, "content": self._content(each)} for each in messages]
        try:
            return self.processor.apply_chat_template(
                conversation,
                tools=[tool.as_openai() for tool in tools] or None,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except TemplateError as error:
            raise RenderError(f"the chat template refuses the dialogue: {error}") from error

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        """What a template takes as a message's content: blocks, or the plain text where there is no other."""
        if self.family == "text":
            if message.images or message.videos:
                raise RenderError(f"the {message.role} message shows an image, and a text model sees none")
            return message.text
        return [
            {"type": "text", "text": block.text} if block.type == "text" else {"type": block.type}
            for block in message.content
        ]

    def _refuse_unsupported_tools(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> None:
        if not self._renders_tools and (tools or any(message.role == "tool" for message in messages)):
            raise RenderError(
                f"the {self.family} checkpoint's chat template knows no tools; give the checkpoint one that"
                " does (posttrain/rendering/templates)"
            )

    def _refuse_control_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> None:
        special = {"assistant": self._control_in_assistant, "tool": self._control_in_tool}
        texts = [(item.role, special.get(item.role, self._control), item.text) for item in messages]
        for tool in tools:
            schema = json.dumps(tool.as_openai(), ensure_ascii=False)
            texts.append((f"tool {tool.name}", self._control, schema))
        for owner, pattern, text in texts:
            if found := pattern.search(text):
                around = text[max(0, found.start() - 30) : found.end() + 30]
                raise RenderError(
                    f"{owner} text contains the control token {found.group()!r} (…{around!r}…), which"
                    " would be read as structure; remove it from the data or describe it in other words"
                )

    def _supervise(self, pieces: Sequence[str], turns: Sequence[Message]) -> list[tuple[str, bool]]:
        """Say of each part of a dialogue's text whether it is learned from.

        Args:
            pieces: The text; those at odd places are assistant turns.
            turns: The assistant turns.
        """
        parts = [(pieces[0], False)]
        for turn, written, following in zip(turns, pieces[1::2], pieces[2::2], strict=True):
            learned = turn.train is not False
            if written.startswith(self._opening):
                # The model finds these tokens in its prompt.
                parts[-1] = (parts[-1][0] + self._opening, False)
                written = written.removeprefix(self._opening)
            elif learned:
                raise RenderError(
                    f"the assistant turn {turn.text[:60]!r} does not begin with {self._opening!r}, which the"
                    " checkpoint's generation prompt ends with; train a thinking checkpoint on answers with"
                    " thinking, or set train: false on the message"
                )
            parts += [(written, learned), (following, False)]
        return parts

    def _encode(self, parts: Sequence[tuple[str, bool]], messages: Sequence[Message]) -> Rendered:
        """Tokenise the parts, each on its own, and expand the placeholders.

        Args:
            parts: Text, and whether it is learned from.
            messages: Those with the images and videos, in the order of their placeholders.
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
        image = self._pixels.load(ref)
        return ImageRef(ref.path, image.sha256), self.num_image_tokens(image.grid_thw)

    def _video_tokens(self, ref: VideoRef) -> VideoTokens:
        """A video is not decoded for its tokens: its header tells how many frames there are."""
        ids = self.tokenizer(self.videos.text(self.videos.plan(ref)), add_special_tokens=False)["input_ids"]
        return dataclasses.replace(ref, sha256=self._pixels.hash_video(ref)), ids


def _any_of(tokens: set[str] | frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
