"""The words that every part shares: messages, boxes, samples, trajectories and scores.

It imports only the standard library, so that plugins can use it without loading torch. Everything here is
plain data that survives a round trip through JSON.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.boxes import Box, Frame
from posttrain.failures import ToolFailure
from posttrain.visuals import ImageRef, TrajectoryImage, TrajectoryMedium, TrajectoryVideo, VideoRef

Role = Literal["system", "user", "assistant", "tool"]
Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
#: What can be trained: a Qwen-VL, or a causal language model, which is shown no images.
ModelFamily = Literal[Family, "text"]

#: The frame in which each family writes its boxes and points, as the families' model cards document it.
FAMILY_FRAMES: dict[Family, Frame] = {
    "qwen2_vl": "norm_1000",
    "qwen2_5_vl": "pixel_resized",
    "qwen3_vl": "norm_1000",
}

#: How a model calls tools: by JSON between tags, or between marks within its turn, as the report on Qwen2-VL
#: or the code of Qwen-Agent has them.
ToolFormat = Literal["hermes", "qwen2_vl", "qwen_agent"]
#: How each family was trained to call tools; Qwen2.5-VL's template knows none, and gets those of Qwen2.5.
FAMILY_TOOL_FORMATS: dict[ModelFamily, ToolFormat] = {
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "hermes",
    "qwen3_vl": "hermes",
    "text": "hermes",
}


@dataclass(frozen=True)
class Block:
    """One piece of a message: text, an image, a video, or a region of an image.

    The text of a region is what is said of it apart from a model: its label, or its numbers.

    Example:
        Block("text", text="Which letter is on the red marker?")
        Block("image", image=ImageRef("/data/scene-0007.png"))
        Block("video", video=VideoRef(("/data/clip.mp4",)))
    """

    type: Literal["text", "image", "video", "region"]
    text: str = ""
    image: ImageRef | None = None
    video: VideoRef | None = None
    region: "Region | None" = None


@dataclass(frozen=True)
class Message:
    """A role and its blocks, in reading order.

    An assistant's tool calls stay in its text, exactly as the model wrote them; nothing is
    re-rendered between turns.

    Attributes:
        role: Who speaks.
        content: The blocks of the message, in reading order.
        train: Whether a supervised stage learns this assistant turn; None leaves it to the renderer's rule.
    """

    role: Role
    content: tuple[Block, ...]
    train: bool | None = None

    def __post_init__(self) -> None:
        if self.train is not None and self.role != "assistant":
            raise ValueError(f"only an assistant message can have train, not a {self.role} message")

    @property
    def text(self) -> str:
        """The message's text blocks, and what is said of regions, joined."""
        return "".join(block.text for block in self.content)

    @property
    def images(self) -> list[ImageRef]:
        """The message's images, in order."""
        return [block.image for block in self.content if block.image is not None]

    @property
    def videos(self) -> list[VideoRef]:
        """The message's videos, in order."""
        return [block.video for block in self.content if block.video is not None]


def text_message(role: Role, text: str) -> Message:
    """Make a message of one text block."""
    return Message(role, (Block("text", text=text),))


@dataclass(frozen=True)
class Region:
    """What a text says of a part of an image: what it is called, or where it is.

    The renderer writes it in the notation and the frame of the model's family.

    Attributes:
        label: What it is called; "" if the text says where it is.
        box: Where it is; of a point both corners are the same.
        image: The image that the box is of.
        is_point: Whether it is a point.
    """

    label: str = ""
    box: Box | None = None
    image: ImageRef | None = None
    is_point: bool = False


@dataclass(frozen=True)
class Sample:
    """One row of a dataset in the canonical form.

    Attributes:
        id: Unique within its dataset.
        messages: The prompt; for supervised data the assistant turns as well.
        ground_truth: The reference answer that rewards compare with, of any JSON type; None if there is none.
        tools: The tools that the dialogue uses (supervised data): names of installed tools, or the
            specifications of tools that exist only in the data.
        columns: Every other column of the row, for rewards and environments.
        chosen: Preference data: the preferred turns that follow `messages`; empty where there are none.
        rejected: Preference data: the turns that lost to `chosen`.
    """

    id: str
    messages: tuple[Message, ...]
    ground_truth: Any = None
    tools: tuple["str | ToolSpec", ...] = ()
    columns: dict[str, Any] = field(default_factory=dict)
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()


@dataclass(frozen=True)
class ToolSpec:
    """What a model is told about a tool: the form that chat templates render.

    Attributes:
        name: The name by which the model calls it.
        description: What it does.
        parameters: JSON schema of its arguments, an object schema.
        written: The whole `{"type": "function", …}` as a dataset's row has it, where that says more or has
            its keys in another order; else None.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    written: Mapping[str, Any] | None = None

    def as_openai(self) -> dict[str, object]:
        """Return the `{"type": "function", …}` form that Qwen's chat templates expect."""
        if self.written is not None:
            return dict(self.written)
        described = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": described}


@dataclass(frozen=True)
class ToolCall:
    """One call that a model wrote, and its result.

    Attributes:
        name: The tool's name as written ("" if the call could not be read).
        arguments: The arguments as parsed ({} if they could not be read).
        ok: Whether the tool ran.
        error: The error message that the model was shown if it did not run.
        images: Number of images that the tool returned.
        seconds: How long it took; None where nothing was run. It is no part of what calls are compared by.
    """

    name: str
    arguments: Mapping[str, object]
    ok: bool
    error: str = ""
    images: int = 0
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class EnvironmentReply:
    """An environment's reply to one assistant turn.

    Attributes:
        message: What the model is shown next, text and images: where it called tools, the result of its first
            call. None if the episode is over.
        calls: The tool calls of the turn, run or refused.
        done: Whether the episode is over.
        truncated: Whether it ended at the turn limit, and not with an answer.
        further: The results of the turn's other calls, a message each, in the order of the calls.
    """

    message: Message | None
    calls: tuple[ToolCall, ...]
    done: bool
    truncated: bool = False
    further: tuple[Message, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that the model is shown next."""
        return () if self.message is None else (self.message, *self.further)


@dataclass(frozen=True)
class Score:
    """What a reward says of one episode.

    Attributes:
        value: The score, in [0, 1] unless the reward declares another range.
        parts: Named components of the score, kept for the viewer.
        note: One line that gives the reason.
    """

    value: float
    parts: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class RewardInput:
    """What a reward sees of one finished episode.

    Attributes:
        prompt: The messages before the model's first turn.
        response: Everything that followed: assistant turns and tool observations.
        answer: The final assistant turn's text without its thinking.
        ground_truth: The sample's reference answer.
        columns: The sample's other columns.
        tool_calls: Every call of the episode, in order.
        truncated: Whether the episode ended at a length or turn limit.
        completion_ids: The token ids sampled in all turns, in order; empty where nobody knows them.
        outcome: What the episode's environment says of its end, by name; empty without one.
    """

    prompt: tuple[Message, ...]
    response: tuple[Message, ...]
    answer: str
    ground_truth: Any = None
    columns: dict[str, Any] = field(default_factory=dict)
    tool_calls: tuple[ToolCall, ...] = ()
    truncated: bool = False
    completion_ids: tuple[int, ...] = ()
    outcome: dict[str, float] = field(default_factory=dict)


@dataclass
class RewardResult:
    """The scores of one episode: the weighted sum, and every part of it.

    Attributes:
        total: The weighted sum, or None where any reward failed (an error is never a zero).
        values: Unweighted value by reward name; None where the reward does not apply.
        parts: The components of each reward, by reward name.
        notes: One line that gives the reason, by reward name.
        errors: Why a reward failed, by reward name. An episode with an error does not enter its group's
            baseline.
    """

    total: float | None
    values: dict[str, float | None] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


@dataclass
class Trajectory:
    """The ledger of one episode: which tokens it has, and which of them the policy sampled.

    The five lists have one entry per token. Ids are only ever appended: a turn that is decoded and
    tokenised again may get other ids than were sampled, and training on those would be silently wrong.

    Attributes:
        sample_id: The prompt's id.
        task: Name of the task that the prompt came from.
        group: Index of the prompt in its rollout batch.
        episode: Index of the episode within its group.
        token_ids: [T] prompt, sampled and observation tokens, placeholders expanded.
        sampled: [T] True exactly where the policy sampled the token.
        logprobs: [T] the engine's log-prob where sampled, else 0.0.
        versions: [T] the policy version whose weights sampled the token, else -1.
        approximate: [T] True where keys and values of older weights were kept, so the log-prob is not exact.
        images: The images, in the order of their placeholders.
        videos: The videos, likewise.
        prompt: The messages before the model's first turn.
        response: The turns that followed.
        tool_calls: Every tool call, in order.
        stop_reason: `answer`, `max_turns`, `max_tokens`, or `error` where the world failed.
        outcome: What the environment says of the end, by name.
        failures: Failures of the world, of the attempts before as well; see `stop_reason` for the last one.
        reward: The scores, once the episode was scored.
        advantage: The group-relative advantage, once computed.
    """

    sample_id: str
    task: str
    group: int
    episode: int
    token_ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    approximate: list[bool] = field(default_factory=list)
    images: list[TrajectoryImage] = field(default_factory=list)
    videos: list[TrajectoryVideo] = field(default_factory=list)
    prompt: tuple[Message, ...] = ()
    response: list[Message] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    stop_reason: str = ""
    outcome: dict[str, float] = field(default_factory=dict)
    failures: list[ToolFailure] = field(default_factory=list)
    reward: RewardResult | None = None
    advantage: float | None = None

    @property
    def media(self) -> list[TrajectoryMedium]:
        """All that it shows: its images, then its videos."""
        return [*self.images, *self.videos]

    @property
    def failed(self) -> bool:
        """Whether the world failed it, so that it says nothing of the policy."""
        return self.stop_reason == "error"
