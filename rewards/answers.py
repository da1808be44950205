"""Where the final answer stands in what a model wrote, and when two answers are the same text."""

import re
import unicodedata

_MARKED = re.compile(r"(?:\banswer\s*(?:is|:|：)|答案(?:是|为|:|：))[\s:：]*([^\n]+)", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_LEADING = " \"'`*_“‘「"
_TRAILING = " \"'`*_.,;:?。，；：？”’」"


def without_thinking(text: str) -> str:
    """The text after the model's thinking; nothing where the thinking never ended.

    The opening tag may stand in the prompt, so only the closing one counts.
    """
    after = text.rpartition("</think>")[2]
    return after.partition("<think>")[0].strip()


def final_answer(text: str) -> str:
    r"""The answer a text ends with: the last of the first form found, "" for an empty text.

    Forms, strongest first: `<answer>…</answer>`, `\boxed{…}`, `Answer: …` or `the answer is …`, and the
    last line that is not empty. Only one answer counts, so listing many candidates does not pay.
    """
    text = without_thinking(text)
    if tagged := _TAGGED.findall(text):
        return final_answer(tagged[-1]) if "\\boxed" in tagged[-1] else tagged[-1].strip()
    if (boxed := _last_boxed(text)) is not None:
        return boxed.strip()
    if marked := _MARKED.findall(text):
        return marked[-1].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def normalise(text: str) -> str:
    """One spelling for texts that differ only in width, case, white space or surrounding punctuation.

    A text of punctuation alone stays as it is, so that only white space becomes "".
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.lstrip(_LEADING).rstrip(_TRAILING) or text


def _last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{…}` holds, braces balanced; None where there is none that closes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for index in range(start + len("\\boxed"), len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[start + len("\\boxed{") : index]
    return None
