"""What every page is made with: the templates' environment, the style, and writing it."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from posttrain.files.durable import write_atomic
from posttrain.viewer.charts import short
from posttrain.viewer.wording import duration, label, shortened, visible

HERE = Path(__file__).parent


@cache
def environment() -> Environment:
    """Return this folder's templates; everything that they show is escaped, a name they lack is an error."""
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "short": short,
        "shortened": shortened,
        "words": label,
        "duration": duration,
        "visible": visible,
    }
    return made


def page(template: str, **values: object) -> str:
    """Return a page's HTML.

    Args:
        template: Name of a template of this folder.
        values: What it shows, beside the common `style`.
    """
    style = Markup((HERE / "report.css").read_text("utf-8"))  # noqa: S704 (the package's own file)
    return environment().get_template(template).render(style=style, **values)


def write_page(path: Path, html: str) -> Path:
    """Write a page; half a surrogate pair, which no file can hold, becomes a question mark."""
    write_atomic(path, html.encode("utf-8", "replace").decode("utf-8"))
    return path
