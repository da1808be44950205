"""Which keys of messages, blocks, videos, images and calls are read, and what is said of any other.

A key that nobody reads would be lost in silence, so a row that has one is broken. One whose value is empty
says nothing (a merged Parquet file gives every object every key) and is passed over.
"""

from collections.abc import Collection, Mapping, Sequence

from posttrain.data.formats.errors import DataError
from posttrain.files.nearest import nearest

#: Of a message in the canonical form.
MESSAGE_KEYS = frozenset({"role", "content", "train"})
#: Of a message, and say nothing that a model is shown.
SILENT_KEYS = frozenset({"id", "name", "tool_call_id"})
#: Whether a turn is learned: ours, ms-swift's, slime's, OpenAI's, axolotl's.
LEARNING_KEYS = frozenset({"train", "loss", "loss_mask", "weight", "training"})
#: What an assistant thought before it spoke: DeepSeek's and Qwen's, OpenRouter's, Ollama's and TRL's.
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
#: What only an assistant's message has, in any other form than the canonical one.
ASSISTANT_KEYS = frozenset({*THINKING_KEYS, "tool_calls", "function_call", "refusal"})
#: Of a message in any other form, beside those of role and content.
TURN_KEYS = frozenset({*LEARNING_KEYS, *ASSISTANT_KEYS, *SILENT_KEYS})

#: Of a video, beside its files, and of a video of the canonical form.
CANONICAL_VIDEO_KEYS = frozenset({"sha256", "fps", "frame_rate", "start", "end"})
VIDEO_KEYS = CANONICAL_VIDEO_KEYS | {"video_start", "video_end", "sample_fps"}
#: Of blocks in the canonical form, by their type.
BLOCK_KEYS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"type", "text"}),
    "image": frozenset({"type", "image", "sha256"}),
    "video": frozenset({"type", "video", *CANONICAL_VIDEO_KEYS}),
    "region": frozenset({"type", "label", "region", "frame", "image"}),
}
#: Of a picture that is an object, as Parquet has them: `{"bytes": …, "path": …}`.
IMAGE_KEYS = frozenset({"bytes", "path", "url", "image"})
#: Of a call, and of its function; `parameters` is what Llama's calls have in place of `arguments`.
CALL_KEYS = frozenset({"id", "type", "index", "function"})
FUNCTION_KEYS = frozenset({"id", "type", "name", "arguments", "parameters"})

#: Formats that read a key which another does not, by the key.
_READ_BY = dict.fromkeys((*sorted(TURN_KEYS | VIDEO_KEYS), "image_url", "video_url"), "openai")
_READ_BY |= {"from": "sharegpt", "value": "sharegpt"}
#: What other names for a key are often taken for.
_MEANT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("text", "value", "content", "says"), ("content", "value")),
    **dict.fromkeys(("from", "role", "speaker"), ("role", "from")),
    **dict.fromkeys(("args", "input", "kwargs"), ("arguments",)),
}
#: What decides the size and the frames that a model is shown: the recipe's, one for all rows.
SIZE_KEYS = {
    **dict.fromkeys(("resized_height", "resized_width", "min_pixels", "max_pixels"), "model.max_pixels"),
    **dict.fromkeys(("min_frames", "max_frames", "nframes"), "model.video_max_frames"),
    **dict.fromkeys(("total_pixels", "video_max_pixels"), "model.video_max_pixels"),
}


def refuse_unread(
    item: Mapping[str, object], read: Collection[str], noun: str, path: str, canonical: bool = False
) -> None:
    """Refuse an object that has a key which nobody reads, unless its value is empty.

    Args:
        item: A message, a block, a call, …
        read: The keys that are read.
        noun: What the object is.
        path: Where it is in the row, with dots, as `drop_columns` has it: `messages.content`.
        canonical: Whether it is of the canonical form, which another format may read in more words.

    Raises:
        DataError: Naming the key, the nearest one that is read, and how to leave it out.
    """
    unread = [str(key) for key in item if key not in read and not is_empty(item[key])]
    if not unread:
        return
    first, *more = unread
    said, it = f"a key {first!r} that is not read", "it"
    if more:
        said, it = f"keys that are not read, {in_words(unread)}; of {first!r}", "them"
    paths = ", ".join(f"{path}.{key}" for key in unread)
    raise DataError(
        f"{noun} has {said}{':' if more else ';'} {_hint(first, read, canonical)}; to leave {it} out, write"
        f" drop_columns: [{paths}] in the dataset's YAML"
    )


def in_words(names: Sequence[str]) -> str:
    """Write names in quotes, the last one after "and": `'a', 'b' and 'c'`."""
    quoted = [repr(name) for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def is_empty(value: object) -> bool:
    """Tell whether a value says nothing: null, an empty text, list or object; not false, nor 0."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def nearest_key(name: str, known: Collection[str]) -> str:
    """Return the known name that another was probably meant to be; "" if there is none.

    Case, underscores and an `s` at the end make no difference.
    """
    names = {_bare(other): other for other in sorted(known)}
    if found := names.get(_bare(name)):
        return found
    near = nearest(_bare(name), names, cutoff=0.81)
    return "" if near is None else names[near]


def _bare(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "").rstrip("s")


def _hint(key: str, read: Collection[str], canonical: bool) -> str:
    if key in SIZE_KEYS:
        return f"images and videos of all rows are resized alike, by {SIZE_KEYS[key]} in the recipe"
    if canonical and key in _READ_BY:
        return f"format: {_READ_BY[key]} reads it"
    if meant := next((name for name in _MEANT.get(key, ()) if name in read), "") or nearest_key(key, read):
        return f"did you mean {meant!r}?"
    return f"read are {', '.join(sorted(read))}"
