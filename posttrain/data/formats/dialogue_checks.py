"""What a dialogue must be, however it was written: turns in an order, each of which says something."""

import re
import unicodedata

from posttrain.data.formats.errors import DataError
from posttrain.messages import THINK_END, THINK_START
from posttrain.types import Message

#: Around nothing, they are what a model that is told not to think writes all the same.
_THINKING_MARKS = re.compile(f"{THINK_START}|{THINK_END}")
#: Letters that are empty: of Hangul, and of Braille.
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"


def check_dialogue(messages: tuple[Message, ...]) -> None:
    """Refuse an order of roles that no chat template can mean."""
    roles = [message.role for message in messages]
    if "user" not in roles:
        raise DataError("the dialogue has no user message")
    if "system" in roles[1:]:
        raise DataError("a system message may only come first")
    for before, role in zip([None, *roles], roles, strict=False):
        if role == "assistant" and before in (None, "system", "assistant"):
            raise DataError(f"an assistant message follows {before or 'nothing'}, not a user or a tool")
        if role == "tool" and before not in ("assistant", "tool"):
            raise DataError(f"a tool message follows {before or 'nothing'}, not an assistant's call")
    for number, message in enumerate(messages, start=1):
        if says_nothing(message):
            raise DataError(
                f"message {number}, of the {message.role}, has no content: it says and shows nothing"
            )


def says_nothing(message: Message) -> bool:
    """Tell whether a message has no text that can be seen, and shows nothing; a tool may print nothing."""
    if message.role == "tool":
        return not message.content
    if any(block.type != "text" for block in message.content):
        return False
    text = message.text
    if text[:1].isascii() and text[:1].isalnum():  # most texts
        return False
    if message.role == "assistant":
        text = _THINKING_MARKS.sub("", text)
    return not any(map(_is_seen, text))


def _is_seen(character: str) -> bool:
    """Tell whether a character can be seen: no white space, and nothing that only steers or marks others."""
    return (
        not character.isspace()
        and unicodedata.category(character) not in ("Cc", "Cf", "Mn", "Me")
        and (character not in _FILLERS)
    )


def check_pair(
    messages: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> None:
    """Refuse what is no choice between two replies to one prompt."""
    if messages[-1].role not in ("user", "tool"):
        raise DataError('the "messages" of a preference pair end with the prompt, before the replies')
    for key, reply in (("chosen", chosen), ("rejected", rejected)):
        if not reply or reply[0].role != "assistant" or reply[-1].role != "assistant":
            raise DataError(f'"{key}" must begin and end with an assistant\'s turn')
        check_dialogue((*messages, *reply))
    if chosen == rejected:
        raise DataError('"chosen" and "rejected" are the same')
