"""One episode of a dialogue with tools, in messages; it never sees a token."""

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.failures import WorldError
from posttrain.media.images import ImageError
from posttrain.messages import without_thinking
from posttrain.types import Block, EnvironmentReply, ImageRef, Message, Sample, ToolCall
from tools_env.arguments import CHECK_S, misfit
from tools_env.games import Environment, LoadedGame, checked_rewards
from tools_env.hermes import ParsedCall, parse_calls
from tools_env.numbers import whole_numbers
from tools_env.sdk import ToolError, ToolResult, once_there
from tools_env.sessions import (
    CALL_S,
    AnyTool,
    Episode,
    OpenSessions,
    SessionTool,
    in_the_world,
    told,
)
from tools_env.shown import blocks_of, blocks_of_parts, checked, checked_parts, readable

logger = logging.getLogger(__name__)


class ToolEnvironment:
    """A dialogue in which the model may call tools until it answers; good for one episode.

    Whatever a model writes, `step` returns something that it can read: a call that is malformed, or that a
    tool refuses, gives an observation that says so. Where the world fails, it raises `WorldError`.

    Example:
        environment = ToolEnvironment([ImageZoomIn()], max_turns=4, image_dir=Path("run/images"))
        prompt = environment.start(sample)
        step = environment.step('<tool_call>{"name": "image_zoom_in_tool", "arguments": {…}}</tool_call>')
    """

    def __init__(
        self, tools: Sequence[AnyTool], max_turns: int, image_dir: Path, game: LoadedGame | None = None
    ) -> None:
        """Prepare an episode.

        Args:
            tools: With distinct names; may be empty.
            max_turns: Most assistant turns, the answer included.
            image_dir: Where the images that tools return are stored.
            game: The environment by a user that answers turns without calls, and whose tools come beside.
        """
        offered = [*tools, *(game.tools if game is not None else ())]
        self._tools = {tool.spec.name: tool for tool in offered}
        if len(self._tools) < len(offered):
            raise ValueError(f"two tools have the same name: {[tool.spec.name for tool in offered]}")
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        self._max_turns = max_turns
        self._image_dir = image_dir
        self._loaded = game
        self._game: Environment | None = None
        self._sessions: OpenSessions | None = None
        self._images: list[ImageRef] = []
        self._turns = 0
        self._over = False
        self._state = "new"

    def start(self, sample: Sample) -> tuple[Message, ...]:
        """Begin the episode; return the messages before the model's first turn.

        Raises:
            RuntimeError: If the environment has been used.
            ValueError: If the sample does not end with a turn that asks for an answer.
            WorldError: If a user's environment cannot begin.
        """
        if self._state != "new":
            raise RuntimeError("an environment is good for one episode; make a new one")
        self._state = "open"
        if not sample.messages or sample.messages[-1].role not in ("user", "tool"):
            raise ValueError(f"sample {sample.id}: a prompt must end with a user turn")
        self._sessions = OpenSessions(Episode.of(sample))
        messages = sample.messages
        if self._loaded is not None:
            messages = _with_blocks(messages, self._begin(self._loaded, self._sessions, sample))
        self._images = [image for message in messages for image in message.images]
        return messages

    def step(self, assistant_text: str) -> EnvironmentReply:
        """Answer an assistant turn: run its calls, or show it to a user's environment.

        Raises:
            RuntimeError: If the episode has not started or is over.
            OSError: If a returned image cannot be stored.
            WorldError: If the world failed.
        """
        if self._state != "open":
            raise RuntimeError(f"the episode cannot go on: it is {self._state}")
        self._turns += 1
        left = self._max_turns - self._turns
        if self._game is not None:
            self._game.turns_left = left
        parsed = parse_calls(assistant_text)
        if not parsed:
            blocks = self._answered(assistant_text)
            self._images += [block.image for block in blocks or () if block.image is not None]
            if blocks is None or left == 0:
                return self._end((), truncated=blocks is not None)
            return EnvironmentReply(Message("user", tuple(blocks)), (), done=False)
        outcomes = [self._run(call, last=left == 0) for call in parsed]
        calls = tuple(call for call, _ in outcomes)
        if self._over or left == 0:
            return self._end(calls, truncated=not self._over)
        first, *further = (Message("tool", tuple(shown)) for _, shown in outcomes)
        return EnvironmentReply(first, calls, done=False, further=tuple(further))

    def close(self) -> Mapping[str, float]:
        """End the episode and its sessions; return the rewards of a user's environment.

        Raises:
            WorldError: If that cannot tell its rewards.
        """
        try:
            return self._rewards() if self._state in ("open", "over") else {}
        finally:
            self._state, self._game = "closed", None
            if self._sessions is not None:
                self._sessions.close()

    def _end(self, calls: tuple[ToolCall, ...], *, truncated: bool) -> EnvironmentReply:
        self._state = "over"
        return EnvironmentReply(None, calls, done=True, truncated=truncated)

    def _begin(self, loaded: LoadedGame, sessions: OpenSessions, sample: Sample) -> list[Block]:
        """Open a user's environment; return what it shows first."""
        opened = sessions.of(loaded)
        assert isinstance(opened, Environment)
        self._game = opened
        opened.turns_left = self._max_turns
        parts = self._asked(lambda: once_there(opened.start(sample), checked_parts), loaded.open_deadline_s)
        return blocks_of_parts(parts or (), self._image_dir)

    def _answered(self, text: str) -> list[Block] | None:
        """Return what a user's environment says to a turn without calls; None at the end of the episode."""
        game, loaded = self._game, self._loaded
        if game is None or loaded is None:
            return None
        try:
            work = partial(game.step, without_thinking(text))
            parts = self._asked(lambda: once_there(work(), checked_parts), game.deadline_s)
        except ToolError as error:
            return [Block("text", text=readable(f"Error: {error}"))]
        return blocks_of_parts(parts, self._image_dir) if parts is not None else None

    def _asked(self, function: Callable[[], Any], seconds: float) -> Any:
        """Ask a user's environment; what it raises but `ToolError` fails it, for its state is in doubt."""
        assert self._loaded is not None
        try:
            return in_the_world(self._loaded.name, function, seconds)
        except (ToolError, WorldError):
            raise
        except Exception as error:
            raise WorldError(told(error), self._loaded.name) from error

    def _rewards(self) -> Mapping[str, float]:
        game = self._game
        if game is None:
            return {}
        return self._asked(lambda: checked_rewards(game.rewards()), game.deadline_s)

    def _run(self, call: ParsedCall, *, last: bool) -> tuple[ToolCall, list[Block]]:
        """Run a call; return its record, and its part of the observation.

        In the last turn nothing could read what a tool returns; the actions of a user's environment count.
        """
        tool = self._tools.get(call.name)
        own = isinstance(tool, SessionTool) and tool.provider is self._loaded
        if self._over:
            return _refused(call, "not run: the episode was over")
        if last and not own:
            return _refused(call, "not run: the turn limit was reached")
        began = time.perf_counter()
        try:
            tool, arguments = _fitting(call, self._tools)
            result = self._result(call.name, tool, arguments)
        except ToolError as error:
            reason = str(error).strip() or f"{call.name} cannot serve this call, and does not say why"
            return _refused(call, readable(f"Error: {reason}"), _since(began))
        except WorldError as error:
            error.seconds = _since(began)
            raise
        seconds = _since(began)
        if result is None:  # an action of a user's environment
            self._over = True
            return ToolCall(call.name, call.arguments, ok=True, seconds=seconds), []
        blocks = blocks_of(result, self._image_dir)
        images = [block.image for block in blocks if block.image is not None]
        self._images += images
        served = ToolCall(call.name, call.arguments, ok=True, images=len(images), seconds=seconds)
        return served, blocks

    def _result(self, name: str, tool: AnyTool, arguments: dict[str, Any]) -> ToolResult | None:
        """Run a call whose arguments fit; raise `ToolError`, with a text for the model, if it is its mistake.

        An exception that a tool does not declare is taken for one: it follows from the arguments, and others
        would not lead to it. What follows from the system is the world's (see `in_the_world`).
        """
        images = list(self._images)
        if isinstance(tool, SessionTool):
            assert self._sessions is not None
            session, seconds = self._sessions.of(tool.provider), tool.provider.deadline_of(name)
            work, own = partial(session.call, name, arguments, images), tool.provider is self._loaded
        else:
            seconds = getattr(tool, "deadline_s", None) or CALL_S
            work, own = partial(tool, arguments, images), False

        def check(returned: Any) -> ToolResult | None:
            return None if returned is None and own else checked(returned)

        try:
            return in_the_world(name, lambda: once_there(work(), check), seconds)
        except (ToolError, WorldError):
            raise
        except ImageError as error:
            raise ToolError(f"{name} made an image that cannot be shown: {error}") from error
        except Exception as error:
            logger.warning("tool %s failed on %.500r", name, arguments, exc_info=True)
            raise ToolError(f"{name} failed ({type(error).__name__})") from error


def _fitting(call: ParsedCall, tools: Mapping[str, AnyTool]) -> tuple[AnyTool, dict[str, Any]]:
    """Return a call's tool, and its arguments as that takes them; raise `ToolError` if they do not fit.

    They are copies, because a tool that overran may still change what it was given.
    """
    if call.error:
        raise ToolError(call.error)
    tool = tools.get(call.name)
    if tool is None:
        raise ToolError(f"there is no tool {call.name[:80]!r}; the tools are: {', '.join(tools) or 'none'}")
    arguments = whole_numbers(copy.deepcopy(call.arguments), tool.spec.parameters)
    try:
        wrong = in_the_world(call.name, lambda: misfit(tool.spec.parameters, arguments, CHECK_S), CHECK_S)
    except Exception as error:  # of the schema, which a server may have made up
        raise WorldError(f"has a schema that cannot be checked: {told(error)}", call.name) from error
    if wrong is not None:
        raise ToolError(f"arguments{wrong[0]} of {call.name}: {wrong[1]}")
    return tool, arguments


def _refused(call: ParsedCall, reason: str, seconds: float | None = None) -> tuple[ToolCall, list[Block]]:
    refused = ToolCall(call.name, call.arguments, ok=False, error=reason, seconds=seconds)
    return refused, [Block("text", text=reason)]


def _since(began: float) -> float:
    """Return the seconds since a moment, to milliseconds."""
    return round(time.perf_counter() - began, 3)


def _with_blocks(messages: tuple[Message, ...], blocks: Sequence[Block]) -> tuple[Message, ...]:
    """Return messages with blocks at the end of their last user turn, or in one of their own."""
    if not blocks:
        return messages
    *before, last = messages
    if last.role != "user":
        return (*messages, Message("user", tuple(blocks)))
    return (*before, Message("user", (*last.content, *blocks)))
