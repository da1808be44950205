"""One episode of a dialogue with tools, in messages; it never sees a token."""

import copy
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from PIL import Image

from posttrain.media.images import check_size, save_image
from posttrain.types import Block, EnvironmentReply, ImageRef, Message, Sample, ToolCall
from tools_env.deadline import DeadlineError, call_with_deadline
from tools_env.hermes import ParsedCall, parse_calls
from tools_env.numbers import whole_numbers
from tools_env.sdk import Tool, ToolError, ToolResult

logger = logging.getLogger(__name__)

#: Deadline of one call in seconds; `tools_env.deadline` says what it can and cannot do.
CALL_TIMEOUT_S = 10.0
#: Longest text that one call puts into the dialogue, in characters.
MAX_TEXT = 4_000
#: Most images that one call puts into the dialogue.
MAX_IMAGES = 4
# What would pass for the template's own markup: `<|im_end|>`, `</tool_response>` …
_MARKUP = re.compile(r"<(?=\||/?(?:tool_call|tool_response|tools|think)>)")


class ToolEnvironment:
    """A dialogue in which the model may call tools until it answers; good for one episode.

    Whatever a model writes and whatever a tool does, `step` returns something that the model can read:
    a call that is malformed, fails, or overruns its deadline gives an observation that says so.

    Example:
        environment = ToolEnvironment([ImageZoomIn()], max_turns=4, image_dir=Path("run/images"))
        prompt = environment.start(sample)
        step = environment.step('<tool_call>{"name": "image_zoom_in_tool", "arguments": {…}}</tool_call>')
    """

    def __init__(self, tools: Sequence[Tool], max_turns: int, image_dir: Path) -> None:
        """Prepare an episode.

        Args:
            tools: With distinct names; may be empty.
            max_turns: Most assistant turns, the answer included.
            image_dir: Where the images that tools return are stored.
        """
        self._tools = {tool.spec.name: tool for tool in tools}
        if len(self._tools) < len(tools):
            raise ValueError(f"two tools have the same name: {[tool.spec.name for tool in tools]}")
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        self._max_turns = max_turns
        self._image_dir = image_dir
        self._images: list[ImageRef] = []
        self._turns = 0
        self._state = "new"

    def start(self, sample: Sample) -> tuple[Message, ...]:
        """Begin the episode; return the messages before the model's first turn.

        Raises:
            RuntimeError: If the environment has been used.
            ValueError: If the sample does not end with a turn that asks for an answer.
        """
        if self._state != "new":
            raise RuntimeError("an environment is good for one episode; make a new one")
        self._state = "open"
        if not sample.messages or sample.messages[-1].role not in ("user", "tool"):
            raise ValueError(f"sample {sample.id}: a prompt must end with a user turn")
        self._images = [image for message in sample.messages for image in message.images]
        return sample.messages

    def step(self, assistant_text: str) -> EnvironmentReply:
        """Run the calls of an assistant turn.

        Raises:
            RuntimeError: If the episode has not started or is over.
            OSError: If a returned image cannot be stored.
        """
        if self._state != "open":
            raise RuntimeError(f"the episode cannot go on: its environment is {self._state}")
        self._turns += 1
        parsed = parse_calls(assistant_text)
        if not parsed:
            self.close()
            return EnvironmentReply(None, (), done=True)
        if self._turns == self._max_turns:
            self.close()
            reason = "not run: the turn limit was reached"
            calls = tuple(ToolCall(call.name, call.arguments, ok=False, error=reason) for call in parsed)
            return EnvironmentReply(None, calls, done=True)
        outcomes = [self._run(call) for call in parsed]
        blocks = [block for _, shown in outcomes for block in shown]
        calls = tuple(call for call, _ in outcomes)
        return EnvironmentReply(Message("tool", tuple(blocks)), calls, done=False)

    def close(self) -> None:
        """End the episode; may be called at any time, and again."""
        self._state = "closed"

    def _run(self, call: ParsedCall) -> tuple[ToolCall, list[Block]]:
        """Run a call; return its record, and its part of the observation."""
        try:
            result = self._result(call)
        except ToolError as error:
            reason = str(error).strip() or f"{call.name} cannot serve this call, and does not say why"
            text = _readable(f"Error: {reason}")
            return ToolCall(call.name, call.arguments, ok=False, error=text), [Block("text", text=text)]
        refs = [save_image(image, self._image_dir) for image in result.images]
        self._images += refs
        blocks = [Block("image", image=ref) for ref in refs]
        if result.text or not refs:
            blocks.append(Block("text", text=_readable(result.text)))
        return ToolCall(call.name, call.arguments, ok=True, images=len(refs)), blocks

    def _result(self, call: ParsedCall) -> ToolResult:
        """Run a call; raise `ToolError`, with a text for the model, whatever went wrong."""
        if call.error:
            raise ToolError(call.error)
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            raise ToolError(f"there is no tool {call.name[:80]!r}; the tools are: {known}")
        # Copies, because a tool that overran may still change what it was given.
        arguments, images = copy.deepcopy(call.arguments), list(self._images)
        arguments = whole_numbers(arguments, tool.spec.parameters)
        wrong = best_match(Draft202012Validator(tool.spec.parameters).iter_errors(arguments))
        if wrong is not None:
            place = "".join(f"[{key!r}]" for key in wrong.absolute_path)
            raise ToolError(f"arguments{place} of {call.name}: {wrong.message[:400]}")
        try:
            return call_with_deadline(lambda: _checked(tool(arguments, images)), CALL_TIMEOUT_S)
        except ToolError:
            raise
        except DeadlineError as error:
            logger.warning("tool %s %s", call.name, error)
            raise ToolError(f"{call.name} {error}") from error
        except Exception as error:
            logger.warning("tool %s failed on %.500r", call.name, call.arguments, exc_info=True)
            raise ToolError(f"{call.name} failed ({type(error).__name__})") from error


def _checked(result: object) -> ToolResult:
    """Return a result whose images are decoded and within bounds; raise where it is none."""
    if not isinstance(result, ToolResult) or not isinstance(result.text, str):
        raise TypeError(f"a tool must return a ToolResult, got {type(result).__name__}")
    images: list[Image.Image] = []
    for image in result.images[:MAX_IMAGES]:
        check_size(image.size)
        images.append(image.convert("RGB"))
    left_out = len(result.images) - len(images)
    note = f"\n[{left_out} more images were cut]" if left_out else ""
    return ToolResult(result.text[:MAX_TEXT] + note if note else result.text, images)


def _readable(text: str) -> str:
    """Cut to size, and free of what the chat template would take for its own markup."""
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}\n[{len(text) - MAX_TEXT:,} more characters were cut]"
    return _MARKUP.sub("< ", text).encode("utf-8", "replace").decode()
