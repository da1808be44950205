"""The limits of pictures: are they pixels, or tokens that were written where pixels are meant?"""

import json
from collections.abc import Mapping
from pathlib import Path

from posttrain.config.model import base_model, infer_family
from posttrain.preflight.findings import Examination

#: Fewer tokens of a picture than anybody would want; a limit below was most likely meant as tokens.
FEW_TOKENS = 32
#: More tokens of a video than any model takes; a limit above was most likely meant as pixels.
MANY_TOKENS = 1 << 20


def examine_pixels(look: Examination) -> None:
    """Note limits that leave next to nothing of pictures, and those that contradict the checkpoint's."""
    model = look.config.model
    family = model.family or (model.name_or_path and infer_family(model.name_or_path))
    if family == "text":
        return
    own = _own_settings(model.name_or_path)
    default = 16 if family == "qwen3_vl" else 14
    side = _number(own, "patch_size", default) * _number(own, "merge_size", 2)
    area = side**2
    few = [
        key
        for key in ("max_pixels", "video_max_pixels")
        if 0 < (getattr(model, key) or 0) < FEW_TOKENS * area
    ]
    for key in few:
        limit, shown = getattr(model, key), "a picture" if key == "max_pixels" else "a video's frame"
        look.note(
            f"model.{key} = {limit} leaves {max(1, limit // area)} token(s) of {shown} at most: it is in"
            f" pixels, and a token takes {side}*{side}; {limit} tokens are {limit * area} pixels"
        )
    if 0 < (model.min_pixels or 0) < area:
        look.note(
            f"model.min_pixels = {model.min_pixels} is less than one token and changes nothing: it is in"
            f" pixels, and a token takes {side}*{side}"
        )
    if model.video_max_tokens > MANY_TOKENS:
        look.note(
            f"model.video_max_tokens = {model.video_max_tokens} is in tokens; so many pixels are"
            f" {model.video_max_tokens // area} tokens, each of {side}*{side}"
        )
    if "max_pixels" not in few:
        _examine_order(look, own)


def _examine_order(look: Examination, own: Mapping[str, object]) -> None:
    """Note a limit that is on the wrong side of the other one, which is the checkpoint's own."""
    model, size = look.config.model, own.get("size")
    limits = size if isinstance(size, dict) else {}
    least = model.min_pixels or _number(limits, "shortest_edge", _number(own, "min_pixels", 0))
    most = model.max_pixels or _number(limits, "longest_edge", _number(own, "max_pixels", 0))
    if 0 < most < least:
        key, other = ("min_pixels", "max_pixels") if model.min_pixels else ("max_pixels", "min_pixels")
        look.note(
            f"model.{key} contradicts the checkpoint's own {other}: a picture has at least {least} pixels and"
            f" at most {most}; set both"
        )


def _own_settings(checkpoint: str | None) -> Mapping[str, object]:
    """Read the image processor's settings of a local checkpoint; {} if there are none."""
    if checkpoint is None:
        return {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            read = json.loads((Path(base_model(checkpoint)) / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(read, dict):
            inner = read.get("image_processor")
            return inner if isinstance(inner, dict) else read
    return {}


def _number(settings: Mapping[str, object], key: str, default: int) -> int:
    value = settings.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default
