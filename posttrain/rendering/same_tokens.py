"""Whether two models read the same tokens alike, so that one may learn the other's distribution."""

from posttrain.rendering.rendering import Renderer


def token_difference(student: Renderer, teacher: Renderer) -> str:
    """Say how a teacher's tokens differ from the student's; "" if they are the same."""
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours == theirs:
        return ""
    token = min(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    there, here = theirs.get(token), ours.get(token)
    return f"has other tokens than the student: {token!r} is {there} there and {here} here"


def image_difference(student: Renderer, teacher: Renderer) -> str:
    """Say how images are cut into tokens otherwise by a teacher; "" if they are not, or nobody sees any."""
    if student.family == "text":
        return ""
    if teacher.family == "text":
        return "sees no images, and the student does"
    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        here, there = (getattr(each.processor.image_processor, name) for each in (student, teacher))
        if here != there:
            return f"cuts images otherwise than the student: its {name} is {there}, the student's {here}"
    return ""
