"""The state of the tiny desktop, what of it is on its screen, and how that is drawn."""

from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from tools_env.devices import Point

#: Multiples of 28, so that Qwen2-VL's and Qwen2.5-VL's processors show its own pixels.
SIZE = (336, 252)
#: Rows of a list that are seen at once, and pixels of one.
ROWS, ROW = 4, 22
_WINDOW = (200, 170)
Area: TypeAlias = tuple[int, int, int, int]
_COLOURS = {"Notes": "gold", "Settings": "slategray", "Files": "peru"}


@dataclass
class State:
    """What the desktop keeps.

    Attributes:
        icons: Names of the programs, from the top.
        corner: Where a window's left upper corner is.
        switches: Settings by name, and whether each is on.
        files: Names of the files.
        opened: The program whose window is open, or "".
        selected: The icon that was clicked last, or "".
        asks: Whether a dialog asks whether to save.
        text: What stands in the text field.
        saved: The text that was saved last, or None.
        focused: Whether the field takes what is typed.
        marked: Whether all of its text is selected, so that what is typed replaces it.
        row: The file at the top of the list.
    """

    icons: list[str]
    corner: tuple[int, int]
    switches: dict[str, bool]
    files: list[str]
    opened: str = ""
    selected: str = ""
    asks: bool = False
    text: str = ""
    saved: str | None = None
    focused: bool = False
    marked: bool = False
    row: int = 0


@dataclass(frozen=True)
class Widget:
    """Something on the screen that can be pointed at.

    Attributes:
        name: What it is, such as `icon Notes`, `field` or `Save`.
        area: Where it is, in pixels: left, top, right, bottom.
        text: What is written on it.
        on: Whether it is selected, focused or switched on.
    """

    name: str
    area: Area
    text: str = ""
    on: bool = False

    @property
    def centre(self) -> Point:
        """Its middle."""
        left, top, right, bottom = self.area
        return (left + right) / 2, (top + bottom) / 2

    def holds(self, point: Point) -> bool:
        """Tell whether a point lies on it."""
        left, top, right, bottom = self.area
        return left <= point[0] <= right and top <= point[1] <= bottom


def widgets(state: State) -> list[Widget]:
    """List what can be pointed at; while a dialog asks, that is its buttons alone."""
    if state.asks:
        left, top = state.corner[0] + 24, state.corner[1] + 60
        return [
            Widget("Yes", (left + 12, top + 40, left + 64, top + 62), "Yes"),
            Widget("No", (left + 84, top + 40, left + 136, top + 62), "No"),
        ]
    found = [
        Widget(f"icon {name}", (10, 10 + 76 * place, 74, 70 + 76 * place), name, state.selected == name)
        for place, name in enumerate(state.icons)
    ]
    return found + (_in_window(state) if state.opened else [])


def _in_window(state: State) -> list[Widget]:
    left, top = state.corner
    right = left + _WINDOW[0]
    found = [Widget("close", (right - 20, top + 2, right - 4, top + 18), "x")]
    if state.opened == "Notes":
        field = (left + 10, top + 34, right - 10, top + 58)
        save = (left + 10, top + 130, left + 74, top + 154)
        found += [Widget("field", field, state.text, state.focused), Widget("Save", save, "Save")]
    if state.opened == "Settings":
        for place, (name, on) in enumerate(state.switches.items()):
            height = top + 34 + 36 * place
            found.append(Widget(f"switch {name}", (right - 60, height, right - 20, height + 22), name, on))
    return found


def draw(state: State) -> Image.Image:
    """Draw the screen."""
    image = Image.new("RGB", SIZE, "teal")
    pen = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    shown = widgets(state)
    for place, name in enumerate(state.icons):
        left, top = 26, 12 + 76 * place
        if state.selected == name:
            pen.rectangle((10, top - 2, 74, top + 58), fill="navy")
        pen.rectangle((left, top, left + 32, top + 32), fill=_COLOURS[name], outline="black", width=2)
        pen.text((42, top + 46), name, "white", small, anchor="mm")
    if state.opened:
        left, top = state.corner
        right, bottom = left + _WINDOW[0], top + _WINDOW[1]
        pen.rectangle((left, top, right, bottom), fill="gainsboro", outline="black")
        pen.rectangle((left, top, right, top + 20), fill="navy")
        is_saved = state.opened == "Notes" and state.text and state.text == state.saved
        pen.text((left + 6, top + 3), state.opened + (" (saved)" if is_saved else ""), "white", font)
        if state.opened == "Files":
            _draw_files(pen, state)
        inside = [each for each in (_in_window(state)) if each.name != "close"]
        for each in inside:
            _draw_widget(pen, each, state)
        pen.rectangle((right - 20, top + 2, right - 4, top + 18), fill="firebrick")
        pen.text((right - 12, top + 10), "x", "white", font, anchor="mm")
    if state.asks:
        left, top = state.corner[0] + 24, state.corner[1] + 60
        pen.rectangle((left, top, left + 150, top + 72), fill="white", outline="black", width=2)
        pen.text((left + 12, top + 12), "Save this note?", "black", font)
        for each in shown:
            _draw_button(pen, each)
    return image


def _draw_files(pen: ImageDraw.ImageDraw, state: State) -> None:
    left, top = state.corner
    seen = state.files[state.row : state.row + ROWS]
    for place, name in enumerate(seen):
        height = top + 30 + ROW * place
        pen.rectangle((left + 12, height + 3, left + 24, height + 15), fill="khaki", outline="black")
        pen.text((left + 32, height), name, "black", ImageFont.load_default(14))
    above, below = state.row, len(state.files) - state.row - len(seen)
    told = " and ".join(word for word, more in (("above", above), ("below", below)) if more)
    if told:
        pen.text((left + 12, top + 140), f"more {told}", "gray", ImageFont.load_default(14))


def _draw_widget(pen: ImageDraw.ImageDraw, widget: Widget, state: State) -> None:
    left, top, right, bottom = widget.area
    font = ImageFont.load_default(14)
    if widget.name == "field":
        back = "lightblue" if state.marked else "white"
        pen.rectangle(widget.area, fill=back, outline="blue" if widget.on else "gray", width=2)
        pen.text((left + 4, top + 4), widget.text[-24:] + ("|" if widget.on else ""), "black", font)
    elif widget.name == "Save":
        _draw_button(pen, widget)
    else:
        pen.text((state.corner[0] + 14, top + 3), widget.text, "black", font)
        pen.rounded_rectangle(widget.area, 10, fill="limegreen" if widget.on else "darkgray", outline="black")
        knob = right - 20 if widget.on else left + 2
        pen.ellipse((knob, top + 2, knob + 18, bottom - 2), fill="white")


def _draw_button(pen: ImageDraw.ImageDraw, widget: Widget) -> None:
    pen.rectangle(widget.area, fill="lightgray", outline="black", width=2)
    pen.text(widget.centre, widget.text, "black", ImageFont.load_default(14), anchor="mm")
