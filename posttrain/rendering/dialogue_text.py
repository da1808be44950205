"""Dialogues as text, written by a checkpoint's chat template and checked.

Everything about the format is learned from the template by rendering probes and comparing them; none of it is
written down here a second time.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from jinja2 import TemplateError

from posttrain.rendering.chat_templates import check_text_kept, without_earlier_thinking
from posttrain.rendering.inline_calls import InlineCalls
from posttrain.rendering.processors import TemplateProcessor, TextTokenizer
from posttrain.rendering.rendered import RenderError
from posttrain.types import Block, Message, ModelFamily, ToolFormat, ToolSpec, text_message

#: Control tokens that a family writes and reads as text, such as those around boxes; all others are refused.
#: Markup such as `<tool_call>` and `<think>` is ordinary vocabulary to the tokenizer and always allowed.
WRITTEN_TOKENS: dict[ModelFamily, frozenset[str]] = {
    "qwen2_vl": frozenset(
        f"<|{name}_{side}|>" for name in ("object_ref", "box", "quad") for side in ("start", "end")
    ),
    "qwen2_5_vl": frozenset(),
    "qwen3_vl": frozenset(),
    "text": frozenset(),
}

_PROBE = (text_message("user", "question"), text_message("assistant", "answer"))
_SHOWN: tuple[Literal["image"], Literal["video"]] = ("image", "video")
_PROBE_TOOL = ToolSpec("probe_of_the_template", "", {"type": "object", "properties": {}})


class DialogueText:
    """The dialogue format of one checkpoint.

    Attributes:
        opening: What a prompt writes of the assistant's turn, such as `<think>` and a line break; often "".
        calls: How calls and results are written within a turn; None where the template writes them.
        banned_token_ids: Control tokens that must never be sampled, vision placeholders among them.
    """

    def __init__(
        self,
        template: TemplateProcessor,
        tokenizer: TextTokenizer,
        family: ModelFamily,
        end_token_id: int,
        placeholders: Mapping[str, str],
        strips_thinking: bool = False,
        tool_format: ToolFormat = "hermes",
    ) -> None:
        """Learn the format.

        Args:
            template: Applies the chat template.
            tokenizer: The checkpoint's tokenizer.
            family: The model family, which decides which control tokens a text may contain.
            end_token_id: The token that ends a turn.
            placeholders: The tokens in whose place an `image` and a `video` are shown; {} of a text model.
            strips_thinking: Whether thinking before the last user message is removed.
            tool_format: How the model calls tools; `hermes` is written by the template.

        Raises:
            RenderError: If the template does not mark assistant turns by a header and an end token.
        """
        self._template = template
        self._family: ModelFamily = family
        self._end_token = tokenizer.convert_ids_to_tokens(end_token_id)
        self._placeholders = placeholders
        self._strips_thinking = strips_thinking
        self.calls: InlineCalls | None = None if tool_format == "hermes" else InlineCalls(tool_format)
        self._learn_control_tokens(tokenizer)
        self._learn_template()

    def write(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), add_generation_prompt: bool = False
    ) -> list[tuple[str, bool]]:
        """Write a dialogue.

        Args:
            messages: The dialogue so far.
            tools: Tools to announce.
            add_generation_prompt: Whether to end with the header of the assistant's next turn.

        Returns:
            The parts of the text, and for each whether it is learned from.

        Raises:
            RenderError: If a text contains control tokens, or the template cannot express the dialogue.
        """
        if not messages:
            raise RenderError("the dialogue has no messages")
        self._check(messages, tools)
        if self._strips_thinking:
            messages = without_earlier_thinking(messages)
        messages, tools, turns, is_open = self._turns(messages, tools)
        text = self._apply_template(messages, tools, add_generation_prompt and not is_open)
        pieces = self._assistant_turn.split(text)
        if pieces[1::2] != ["".join(part for part, _ in turn) for turn in turns]:
            raise RenderError(
                f"the {self._family} checkpoint's chat template rewrites assistant turns (it may strip"
                " <think> blocks); training needs a template that keeps them (posttrain/rendering/templates)"
            )
        check_text_kept(text, messages)
        _check_placeholders(text, messages, self._placeholders)
        if is_open:
            pieces[-1] = ""
            turns[-1].pop()
        return self._supervise(pieces[::2], turns)

    def _turns(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec]
    ) -> tuple[Sequence[Message], Sequence[ToolSpec], list[list[tuple[str, bool]]], bool]:
        """Return what the template is given, and the parts that it is to write of each assistant turn.

        Returns:
            Messages and tools for the template; of each assistant turn the texts, and for each whether it is
            learned from; and whether the last one goes on.
        """
        if self.calls is None:
            spoken = [message for message in messages if message.role == "assistant"]
            turns = [[(turn.text + self._end_token, turn.train is not False)] for turn in spoken]
            return messages, tools, turns, False
        joined = self.calls.joined(self.calls.announced(messages, tools))
        turns = []
        for turn in joined:
            if turn.message.role == "assistant":
                parts = [(self._text_of(blocks), learned) for blocks, learned in turn.parts]
                turns.append([*parts, (self._end_token, parts[-1][1])])
        return [turn.message for turn in joined], (), turns, self.calls.is_open(messages)

    def _text_of(self, blocks: Sequence[Block]) -> str:
        """Return the text of an assistant's blocks, with a placeholder for each image."""
        return "".join(block.text if block.type == "text" else self._shown[block.type] for block in blocks)

    def reply(self, messages: Sequence[Message], stopped: str | None = None) -> str:
        """Write what follows an assistant's turn: its calls' results or a reply, and the next header.

        Args:
            messages: The results, one for each call, or the reply.
            stopped: Where the turn stopped at the mark of a result, what it has behind it; None if it ended.

        Raises:
            RenderError: If it contains control tokens, or the template cannot express it.
        """
        self._check(messages)
        if self.calls is None or messages[0].role != "tool":
            unfinished = "" if stopped is None else self._end_token
            return unfinished + self._next_turn(messages)
        *blocks, goes_on = self.calls.results(messages, stopped or "")
        if stopped is None:  # the model ended its turn after the call
            shown = Message("user", (Block("text", text=self.calls.stop), *blocks))
            return self._next_turn([shown]) + goes_on.text.lstrip()
        text = self._text_of((*blocks, goes_on))
        _check_placeholders(text, messages, self._placeholders)
        return text

    def _next_turn(self, messages: Sequence[Message]) -> str:
        """Write what the template writes between two turns of the assistant."""
        text = self._apply_template([*_PROBE, *messages], (), add_generation_prompt=True)
        if any(message.role not in ("tool", "user") for message in messages) or not text.startswith(
            self._probe_text
        ):
            raise RenderError(f"the chat template cannot append a {messages[0].role} message to a dialogue")
        text = text.removeprefix(self._probe_text)
        check_text_kept(text, messages)
        _check_placeholders(text, messages, self._placeholders)
        return text

    def _check(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> None:
        """Refuse what the template cannot express, and texts that would be read as structure.

        Raises:
            RenderError: If the template knows no tools and there are some, or a text has control tokens.
        """
        knows_tools = self._renders_tools or self.calls is not None
        if not knows_tools and (tools or any(message.role == "tool" for message in messages)):
            raise RenderError(
                f"the {self._family} checkpoint's chat template knows no tools; give the checkpoint one that"
                " does (posttrain/rendering/templates)"
            )
        texts = [
            (item.role, self._control_in_tool if item.role == "tool" else self._control, item.text)
            for item in messages
        ]
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

    def _learn_control_tokens(self, tokenizer: TextTokenizer) -> None:
        """Collect the tokens that may not occur in text, and those that may not be sampled."""
        added = tokenizer.added_tokens_decoder
        control = {token.content for token in added.values() if token.special}
        written = WRITTEN_TOKENS[self._family]
        self._control = _any_of(control - written)
        # A tool's output may not close its own block and then speak for somebody else.
        self._control_in_tool = _any_of(control - written | {"<tool_response>", "</tool_response>"})
        never = control - written - {self._end_token}
        self.banned_token_ids: list[int] = sorted(i for i, token in added.items() if token.content in never)

    def _learn_template(self) -> None:
        """Learn the assistant's header, its opening and its end, by rendering a probe."""
        whole = self._apply_template(_PROBE)
        asked = self._apply_template(_PROBE[:1])
        prompt = self._apply_template(_PROBE[:1], (), add_generation_prompt=True).removeprefix(asked)
        header = whole.removeprefix(asked).partition(_PROBE[1].text)[0]
        self._probe_text = f"{asked}{header}{_PROBE[1].text}{self._end_token}"
        if not header or not prompt.startswith(header) or not whole.startswith(self._probe_text):
            raise RenderError(
                f"the {self._family} checkpoint's chat template does not write an assistant turn as its"
                f" generation prompt {prompt!r}, the text and {self._end_token!r}; training needs one that"
                " does (posttrain/rendering/templates)"
            )
        self.opening: str = prompt.removeprefix(header)
        # Texts cannot contain control tokens, so a header in the rendering is the template's own.
        self._assistant_turn = re.compile(
            rf"(?<={re.escape(header)})(.*?{re.escape(self._end_token)})", flags=re.DOTALL
        )
        before, _, after = asked.partition(_PROBE[0].text)
        #: What the template writes for an image and for a video, where turns may have some.
        self._shown: dict[str, str] = {}
        for noun in _SHOWN if self.calls is not None and self._placeholders else ():
            written = self._apply_template([Message("user", (Block(noun),))])
            self._shown[noun] = written.removeprefix(before).removesuffix(after)
        self._renders_tools = _PROBE_TOOL.name in self._apply_template(_PROBE, [_PROBE_TOOL])

    def _apply_template(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), add_generation_prompt: bool = False
    ) -> str:
        """Render messages; a template that refuses them raises RenderError."""
        conversation = [{"role": each.role, "content": _content(each, self._family)} for each in messages]
        try:
            return self._template.apply_chat_template(
                conversation,
                tools=[tool.as_openai() for tool in tools] or None,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except (TemplateError, TypeError) as error:  # TypeError: a text where it expects blocks, or the like
            raise RenderError(f"the chat template refuses the dialogue: {error}") from error

    def _supervise(
        self, others: Sequence[str], turns: Sequence[Sequence[tuple[str, bool]]]
    ) -> list[tuple[str, bool]]:
        """Join the parts of a dialogue's text, each with whether it is learned from.

        Args:
            others: The text before, between and after the assistant's turns.
            turns: The parts of each assistant turn.
        """
        parts = [(others[0], False)]
        for turn, following in zip(turns, others[1:], strict=True):
            (written, learned), *rest = turn
            if written.startswith(self.opening):
                # A model finds the opening in its prompt, and does not write it.
                parts[-1] = (parts[-1][0] + self.opening, False)
                written = written.removeprefix(self.opening)
            elif learned:
                raise RenderError(
                    f"the assistant turn {written[:60]!r} does not begin with {self.opening!r}, which the"
                    " checkpoint's generation prompt ends with; train a thinking checkpoint on answers with"
                    " thinking, or set train: false on the message"
                )
            parts += [(written, learned), *rest, (following, False)]
        return parts


def _any_of(tokens: set[str] | frozenset[str]) -> re.Pattern[str]:
    """Make a pattern that finds any of these tokens, the longest first."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


def _content(message: Message, family: ModelFamily) -> str | list[dict[str, str]]:
    """Return a message's content as templates take it: as blocks, or for a text model as plain text."""
    if family == "text":
        if message.images or message.videos:
            raise RenderError(f"the {message.role} message shows an image, and a text model sees none")
        return message.text
    return [
        {"type": "text", "text": block.text} if block.type == "text" else {"type": block.type}
        for block in message.content
    ]


def _check_placeholders(text: str, messages: Sequence[Message], placeholders: Mapping[str, str]) -> None:
    """Check that the template wrote one placeholder for each image and video; texts cannot contain any.

    Raises:
        RenderError: If it wrote more or fewer.
    """
    for noun, token in placeholders.items():
        shown = sum(block.type == noun for message in messages for block in message.content)
        if (found := text.count(token)) != shown:
            raise RenderError(
                f"the chat template wrote {found} {noun} placeholders for {shown} {noun}s; it shows them"
                " in user and tool messages only"
            )
