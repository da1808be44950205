"""Images that a row holds itself, in place of their paths: how they are told from paths."""

import re

from posttrain.media.suffixes import IMAGE_SUFFIXES

#: How the reason begins why a row cannot be read as it stands, though it can be once it is rewritten: its
#: images are no paths, but data: URLs, base64 or objects.
HELD = "the row holds an image itself"
#: Likewise, of a row that is longer than any is without its images.
TOO_LONG = "the row is longer than"
#: Beginnings of the reasons why a canonical file is not read as it stands.
REWRITTEN = (HELD, TOO_LONG)

#: How many letters a text has at least that is taken for a picture in base64, and how such texts begin.
_LENGTH, _BEGINNINGS = 40, ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0AK")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+=*\s*")


def is_held(written: str) -> bool:
    """Tell whether what is written in place of an image's path is the image: a data: URL, or its base64."""
    if written[:5].lower() == "data:":
        return True
    return (
        len(written) >= _LENGTH
        and written.startswith(_BEGINNINGS)
        and not written.lower().endswith(IMAGE_SUFFIXES)
        and _BASE64.fullmatch(written) is not None
    )
