"""Find rewards, tools, generators and runners of stages by reference.

A reference is text, and every process that needs the plugin resolves it itself:

    answer_accuracy            a name declared as an entry point (the built-in ones are, too)
    my_rewards.py:neatness     an attribute of a Python file
    my_package.rewards:score   an attribute of an importable module
"""

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar, get_args, get_origin, get_type_hints

from posttrain.files.nearest import nearest

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_ATTRIBUTE = re.compile(r"[A-Za-z]\w*")

T = TypeVar("T")


class PluginError(ValueError):
    """A reference names nothing, or code that cannot be loaded; the message says what to do."""


def resolve(reference: str, group: str, kind: type[T], base_dir: Path | None = None) -> T:
    """Return the object that a reference names; load the module or file that holds it.

    Args:
        reference: A name, `file.py:attribute` or `package.module:attribute`.
        group: Entry-point group in which names are looked up, such as `posttrain.rewards`.
        kind: Class of the object, or a protocol that can be checked at run time; `object` for anything.
        base_dir: Folder against which file references are resolved; the working directory if None.

    Raises:
        PluginError: With the nearest right name, where the reference is malformed, nothing is there,
            loading it failed, or it is something else than asked for.

    Example:
        resolve("my_rewards.py:neatness", "posttrain.rewards", Reward, Path("recipes"))
    """
    source, colon, attribute = reference.rpartition(":")
    if not colon:
        return _declared(reference, group, kind, base_dir)
    if not _ATTRIBUTE.fullmatch(attribute):
        raise PluginError(f"{reference!r} must name one public attribute after the ':', got {attribute!r}")
    if source.endswith(".py"):
        module = _load_file((base_dir or Path()) / source, reference)
    else:
        module = _load_module(source, reference)
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise PluginError(f"{reference!r}: {source} has no {attribute!r}{_nearest(attribute, public)}")
    found = getattr(module, attribute)
    if not isinstance(found, kind):
        raise PluginError(f"{reference!r} is {type(found).__name__}, not {kind.__name__}")
    return found


@functools.cache
def declared(group: str) -> dict[str, str]:
    """List the names that installed packages declare in a group, with the reference behind each.

    Raises:
        PluginError: If two packages declare one name for different code.
    """
    found: dict[str, str] = {}
    for entry in importlib.metadata.entry_points(group=group):
        other = found.setdefault(entry.name, entry.value)
        if other != entry.value:
            raise PluginError(
                f"two installed packages declare {entry.name!r} in {group}: {other} and {entry.value}; "
                "uninstall one, or refer to its code as package.module:attribute"
            )
    return dict(sorted(found.items()))


def is_declared_name(reference: str) -> bool:
    """Tell whether a reference can only be a declared name: following it runs installed code alone."""
    return _NAME.fullmatch(reference) is not None


def _declared(name: str, group: str, kind: type[T], base_dir: Path | None) -> T:
    """Follow a declared name to the code behind it."""
    if not is_declared_name(name):
        raise PluginError(
            f"{name!r} is not a plugin reference: write a name, file.py:attribute or package.module:attribute"
        )
    names = declared(group)
    if name not in names:
        known = ", ".join(names) or "none (install the project with `pip install -e .`)"
        raise PluginError(
            f"no plugin {name!r} in {group}{_nearest(name, names) or '.'} Declared: {known}. "
            "Your own code is named as file.py:attribute"
        )
    return resolve(names[name], group, kind, base_dir)


def _load_module(source: str, reference: str) -> ModuleType:
    """Import a module by its dotted name.

    The standard library is refused: it holds no plugins, and a stranger's YAML must not be able to
    name, say, `shutil:rmtree`.
    """
    if not _MODULE.fullmatch(source):
        raise PluginError(f"{reference!r}: {source!r} is neither a module name nor a .py file")
    if source.partition(".")[0] in sys.stdlib_module_names:
        raise PluginError(
            f"{reference!r}: {source} belongs to Python's standard library and holds no plugins"
        )
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not (source + ".").startswith(error.name + "."):
            raise PluginError(
                f"{reference!r}: {source} needs the module {error.name!r}, which is missing; install it"
            ) from error
        raise PluginError(
            f"{reference!r}: there is no module {error.name!r}; is it installed, or did you mean "
            f"a file, {source.replace('.', '/')}.py:…?"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed_to_load(reference, source, error) from error


def _load_file(path: Path, reference: str) -> ModuleType:
    """Execute a Python file as a module, once per process."""
    path = path.absolute()
    if not path.is_file():
        others = [other.name for other in path.parent.glob("*.py")]
        raise PluginError(f"{reference!r}: no such file {path}{_nearest(path.name, others)}")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"posttrain_plugin_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{reference!r}: {path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed_to_load(reference, str(path), error) from error
    return module


def _failed_to_load(reference: str, source: str, error: BaseException) -> PluginError:
    """Make the error of code that raised while it was loaded."""
    return PluginError(f"{reference!r}: loading {source} failed with {type(error).__name__}: {error}")


def misfit(function: Callable[..., object], params: Mapping[str, object]) -> str:
    """Return why a function does not take some params beside its first argument; "" if it does.

    Names are compared with its signature, and values with its annotations where these list the choices.

    Example:
        misfit(counting, {"how": "boxes"})  # "params: how: 'boxes' is none of number, box"
    """
    signature = inspect.signature(function)
    try:
        signature.bind(None, **params)
    except TypeError as error:
        takes = ", ".join(list(signature.parameters)[1:]) or "none"
        return f"params: {error} (it takes: {takes})"
    try:
        hints = get_type_hints(function)
    except Exception:  # annotations that only a type checker can read
        return ""
    for name, value in params.items():
        choices = get_args(hints[name]) if get_origin(hints.get(name)) is Literal else ()
        if choices and value not in choices:
            return f"params: {name}: {value!r} is none of {', '.join(map(str, choices))}"
    return ""


def _nearest(name: str, names: Iterable[str]) -> str:
    """Return a hint such as `; did you mean 'math'?`, or nothing."""
    near = nearest(name, names)
    return f"; did you mean {near!r}?" if near else ""
