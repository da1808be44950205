"""The type of a row before anything is known of it."""

from typing import TypeAlias

#: A row, a message or a block as it was read: what JSON can hold, and the bytes of images.
Row: TypeAlias = dict[str, object]
