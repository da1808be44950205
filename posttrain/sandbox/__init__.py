"""Run untrusted Python, for rewards and tools: limits, Landlock and seccomp, namespaces where allowed.

The code can compute, read the standard library and print. It cannot read or write another file, reach a
network or another process, start one, or leave anything behind. Nothing runs where a layer is missing.
"""

from posttrain.sandbox.probe import SandboxMissing, probe
from posttrain.sandbox.runner import Execution, ResourceLimits, Sandbox, SandboxError

__all__ = ["Execution", "ResourceLimits", "Sandbox", "SandboxError", "SandboxMissing", "probe"]
