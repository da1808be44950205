"""What the model is told about the tools of a sample."""

import functools
from collections.abc import Sequence

from posttrain.plugins import PluginError, is_declared_name, resolve
from posttrain.types import Sample, ToolSpec


def tool_specs(sample: Sample) -> list[ToolSpec]:
    """Return the specification of each tool of a sample; tools given by name are looked up.

    Raises:
        PluginError: If a tool cannot be found.
    """
    return [
        spec
        for tool in sample.tools
        for spec in ([tool] if isinstance(tool, ToolSpec) else declared_specs(tool))
    ]


def declared_spec(name: str) -> ToolSpec:
    """Return the specification of an installed tool.

    Raises:
        PluginError: If there is no such tool, or the name stands for several.
    """
    specs = declared_specs(name)
    if len(specs) != 1:
        raise PluginError(f"{name!r} stands for {len(specs)} tools")
    return specs[0]


@functools.cache
def declared_specs(name: str) -> Sequence[ToolSpec]:
    """Return the specifications of an installed tool, or of several that share a session.

    It is declared as an object or as its class, with `spec` or `specs`. Rows of datasets name tools, so only
    declared names are followed, never a file or a module.

    Raises:
        PluginError: If there is no such tool.
    """
    if not is_declared_name(name):
        raise PluginError(f"{name!r} is not the name of an installed tool")
    found = resolve(name, "posttrain.tools", object)
    if isinstance(found, type) and not (hasattr(found, "spec") or hasattr(found, "specs")):
        found = found()
    told = getattr(found, "specs", None) or [getattr(found, "spec", None)]
    specs = [spec for spec in told if isinstance(spec, ToolSpec)]
    if len(specs) < len(told):
        raise PluginError(f"{name!r} is no tool: it has no `spec` that is a ToolSpec")
    return specs
