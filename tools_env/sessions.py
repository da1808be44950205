"""Sessions: what tools keep for one episode, opened when one is first called and closed whatever happens."""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from posttrain.failures import WorldError
from posttrain.types import ImageRef, Sample, ToolSpec
from tools_env.deadline import DeadlineError, call_with_deadline
from tools_env.sdk import Arguments, FunctionTool, Tool, ToolError, ToolResult, as_result

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Seconds that a call may take, and the opening and the closing of a session, unless a tool says otherwise.
CALL_S, OPEN_S, CLOSE_S = 10.0, 60.0, 10.0


@dataclass(frozen=True)
class Episode:
    """What a session is opened for.

    Attributes:
        sample: The prompt with its columns.
        seed: For whatever is drawn; the same in every episode of the prompt, so that they can be compared.
    """

    sample: Sample
    seed: int

    @classmethod
    def of(cls, sample: Sample) -> "Episode":
        """Make the episode of a sample."""
        return cls(sample, int.from_bytes(hashlib.sha256(sample.id.encode()).digest()[:7]))


class OpenSession(Protocol):
    """A session of one episode, as the environment uses it; `Session` is the usual one."""

    def open(self, episode: Episode) -> Awaitable[None] | None:
        """Prepare what the calls need; whatever this raises is a failure of the world."""
        ...

    def call(
        self, name: str, arguments: Arguments, images: list[ImageRef]
    ) -> ToolResult | Awaitable[ToolResult]:
        """Serve a call of one of its tools; see `tools_env.Tool`."""
        ...

    def close(self) -> Awaitable[None] | None:
        """Give back what was opened, however far that came; called again if `open` returned too late."""
        ...


@runtime_checkable
class Provider(Protocol):
    """One tool or several that share a session, of which every episode has its own.

    A class with these members can be named in a task as a tool is; it then stands for all its tools.

    Attributes:
        name: What it is called where it fails.
        specs: What the model is told of its tools.
        open_deadline_s: Seconds that opening a session may take.
    """

    name: str
    specs: Sequence[ToolSpec]
    open_deadline_s: float

    def session(self) -> OpenSession:
        """Make a session that is not open yet; at once, and without asking anybody."""
        ...

    def deadline_of(self, tool: str) -> float:
        """Return how many seconds a call of a tool may take."""
        ...


@dataclass(frozen=True, eq=False)
class SessionTool:
    """A tool of a provider, as a task lists it."""

    spec: ToolSpec
    provider: Provider


AnyTool = Tool | SessionTool


class Session:
    """Tools with what they keep for an episode; subclass it.

    Methods with `@tool` are the tools. Each episode has an object of its own, made with the task's params.
    `open`, `close` and the tools may be `async`: they then run in one event loop.

    Example:
        class Notes(Session):
            def open(self, episode):
                self.lines = []

            @tool
            def write_down(self, text: str) -> str:
                "Write a line into the notebook."
                self.lines.append(text)
                return f"{len(self.lines)} lines"
    """

    #: Seconds that a call may take (`@tool(deadline_s=…)` says otherwise for one tool), and opening.
    deadline_s: ClassVar[float] = CALL_S
    open_deadline_s: ClassVar[float] = OPEN_S
    #: What the model is told of its tools; made of the methods, unless an object sets its own.
    specs: Sequence[ToolSpec] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.specs = [found.spec for found in tools_of(cls).values()]

    def open(self, episode: Episode) -> Awaitable[None] | None:
        """Prepare what the calls need; it may be slow. What it raises is a failure of the world."""

    def close(self) -> Awaitable[None] | None:
        """Give back what was opened, however far that came; called again if `open` returned too late."""

    def call(
        self, name: str, arguments: Arguments, images: list[ImageRef]
    ) -> ToolResult | Awaitable[ToolResult]:
        """Serve a call of one of its tools."""
        return as_result(tools_of(type(self))[name].call_of(arguments, images, self))


class SessionClass:
    """The provider that a subclass of `Session` stands for, with a task's params.

    Args:
        made_of: The class.
        params: Arguments of its constructor.

    Raises:
        TypeError: If it does not take the params.
    """

    def __init__(self, made_of: type[Session], params: Mapping[str, Any]) -> None:
        self._made_of, self._params = made_of, dict(params)
        self._tools = tools_of(made_of)
        self.name = made_of.__name__
        self.specs: Sequence[ToolSpec] = self.session().specs
        self.open_deadline_s = made_of.open_deadline_s

    @property
    def tools(self) -> list[SessionTool]:
        """Its tools."""
        return [SessionTool(spec, self) for spec in self.specs]

    def session(self) -> Session:
        """Make an object for one episode."""
        return self._made_of(**self._params)

    def deadline_of(self, tool: str) -> float:
        """Return how many seconds a call of a tool may take."""
        method = self._tools.get(tool)
        return (method.deadline_s if method is not None else None) or self._made_of.deadline_s


class OpenSessions:
    """The sessions of one episode: each opened when it is first asked for, all of them closed at the end.

    Args:
        episode: What they are opened for.
    """

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self._made: dict[int, tuple[Provider, OpenSession]] = {}

    def of(self, provider: Provider) -> OpenSession:
        """Return the session of a provider.

        Raises:
            WorldError: If it cannot be opened.
        """
        if id(provider) in self._made:
            return self._made[id(provider)][1]
        made = provider.session()
        self._made[id(provider)] = provider, made
        try:
            call_with_deadline(
                lambda: made.open(self._episode), provider.open_deadline_s, lambda _: _close(provider, made)
            )
        except Exception as error:
            raise WorldError(f"cannot be opened: {told(error)}", provider.name) from error
        return made

    def close(self) -> None:
        """Close every session; one that cannot be closed is logged, and keeps nobody from the others."""
        while self._made:
            _close(*self._made.popitem()[1])


def _close(provider: Provider, session: OpenSession) -> None:
    try:
        call_with_deadline(session.close, CLOSE_S)
    except Exception as error:
        logger.warning("a session of %s cannot be closed: %s", provider.name, told(error), exc_info=error)


def tools_of(made_of: type[Session]) -> dict[str, FunctionTool]:
    """Return the tools of a class of sessions by name, in the order in which they are written."""
    members = {name: member for base in reversed(made_of.__mro__) for name, member in vars(base).items()}
    return {name: member for name, member in members.items() if isinstance(member, FunctionTool)}


def in_the_world(name: str, function: Callable[[], Result | Awaitable[Result]], seconds: float) -> Result:
    """Call something of a tool, and tell failures of the world from everything else that it raises.

    The world's are `WorldError`; a deadline of ours that is overrun; and what the system says: `OSError` with
    all its kinds (lost connections, time-outs, full disks), `MemoryError` and `EOFError`, also as the cause
    of another exception.

    Raises:
        WorldError: With the tool's name, if the world failed.
        Exception: Whatever else the function raised.
    """
    try:
        return call_with_deadline(function, seconds)
    except ToolError:
        raise
    except WorldError as error:
        raise WorldError(str(error), error.tool or name) from error
    except DeadlineError as error:
        raise WorldError(str(error), name) from error
    except Exception as error:
        if _is_of_the_system(error):
            raise WorldError(told(error), name) from error
        raise


def told(error: BaseException) -> str:
    """Return an exception in one line, for people."""
    said = " ".join(str(error).split())[:500]
    own = isinstance(error, DeadlineError | WorldError)
    return said if own and said else f"{type(error).__name__}: {said}"


def _is_of_the_system(error: BaseException) -> bool:
    seen: BaseException | None = error
    for _ in range(10):
        if isinstance(seen, OSError | MemoryError | EOFError):
            return True
        seen = seen.__cause__ if seen is not None else None
    return False
