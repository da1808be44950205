"""Two hosts on one machine: network namespaces joined by a wire, with nothing else in common.

Each has its own /tmp, /dev/shm and home directory. One folder of the machine is both hosts' /mnt, as a
network disk would be; what lies in a folder below it can be hidden from the second.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Where both hosts find the shared folder, and the code.
SHARED, CODE = Path("/mnt"), Path("/srv")
ROOT = Path(__file__).absolute().parents[1]
PORT = 6379
ADDRESSES = ("10.77.0.1", "10.77.0.2")
RAY = str(Path(sys.executable).with_name("ray"))
CALM = {
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "HOME": "/tmp/home",
    "PYTHONPATH": str(CODE),
}


@dataclass(frozen=True)
class Host:
    """One of the two.

    Attributes:
        namespace: Its network's.
        address: Its address there.
        holder: The process that keeps its network and its view of the file system; others enter these.
    """

    namespace: str
    address: str
    holder: "subprocess.Popen[bytes]"

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> "subprocess.Popen[bytes]":
        """Start a command on this host; its output goes to a file."""
        enter = ["nsenter", "--target", str(self.holder.pid), "--mount", "--net", "--wd=/tmp"]
        with log.open("ab") as output:
            return subprocess.Popen(
                [*enter, *command],
                env={**os.environ, **CALM, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


@dataclass(frozen=True)
class TwoHosts:
    """Both, with a Ray cluster over them.

    Attributes:
        first: The head, where runs are started.
        second: The other one.
        environment: What a process needs to join the cluster.
        logs: Folder of their output.
    """

    first: Host
    second: Host
    environment: Mapping[str, str]
    logs: Path

    @property
    def cluster(self) -> str:
        """The cluster's address."""
        return f"{self.first.address}:{PORT}"

    def run(self, command: Sequence[str], timeout: float, **environment: str) -> tuple[int, str]:
        """Run a command on the first host; return its exit code and output."""
        log = self.logs / f"command-{secrets.token_hex(4)}.log"
        process = self.first.start(command, {**self.environment, **environment}, log)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = -1
        return code, log.read_text(encoding="utf-8", errors="replace")


def why_not() -> str:
    """Tell why this machine cannot have two hosts; "" if it can."""
    if missing := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        return f"there is no {missing[0]} (packages iproute2 and util-linux)"
    name = f"pt{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"the kernel forbids network namespaces: {tried.stderr.strip()}"
    private = ["ip", "netns", "exec", name, "unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    tried = subprocess.run(private, capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], check=False)
    return f"the kernel forbids private mounts: {tried.stderr.strip()}" if tried.returncode else ""


@contextmanager
def two_hosts(
    shared: Path, logs: Path, hidden: Sequence[str] = (), cpus: int = 1, dashboard: bool = False
) -> Iterator[TwoHosts]:
    """Make two hosts and a Ray cluster over them; everything on them ends with the `with` block.

    Args:
        shared: The folder that is /mnt on both.
        logs: Folder for the output of their processes.
        hidden: Folders below `shared`, by name, of which the second host has an empty one of its own.
        cpus: Cores that each announces.
        dashboard: Whether the first serves Ray's dashboard, to which jobs are submitted.
    """
    tag = secrets.token_hex(2)
    names = (f"pta{tag}", f"ptb{tag}")
    see = f"mount --make-rprivate / && mount --bind {shared} {SHARED} && mount --bind {ROOT} {CODE}"
    see += " && mount -t tmpfs none /dev/shm"
    see += " && mount -t tmpfs none /tmp && mkdir -p /tmp/home"
    if ROOT.is_relative_to("/tmp"):  # the interpreter, too, may lie there
        see += f" && mkdir -p {ROOT} && mount --bind {CODE} {ROOT}"
    without = "".join(f" && mount -t tmpfs none {SHARED / name}" for name in hidden)
    environment = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        _connect(names, ADDRESSES)
        first, second = (
            Host(name, address, _holder(name, script))
            for name, address, script in zip(names, ADDRESSES, (see, see + without), strict=True)
        )
        serving = ["--include-dashboard=true", "--dashboard-host=127.0.0.1"]
        start = [RAY, "start", "--num-cpus", str(cpus), "--object-store-memory", "100000000", "--block"]
        head = ["--head", "--node-ip-address", first.address, "--port", str(PORT)]
        head += serving if dashboard else ["--include-dashboard=false"]
        first.start([*start, *head], environment, logs / "first.log")
        _wait_for(first, environment, logs)
        joined = ["--address", f"{first.address}:{PORT}", "--node-ip-address", second.address]
        second.start([*start, *joined], environment, logs / "second.log")
        yield TwoHosts(first, second, environment, logs)
    finally:
        for name in names:
            _remove(name)


def _connect(names: Sequence[str], addresses: Sequence[str]) -> None:
    """Make the networks, and the wire between them."""
    ends = [f"v{name}" for name in names]
    commands = [f"netns add {name}" for name in names]
    commands += [f"link add {ends[0]} type veth peer name {ends[1]}"]
    for name, end, address in zip(names, ends, addresses, strict=True):
        commands += [f"link set {end} netns {name}"]
        inside = f"netns exec {name} ip"
        commands += [f"{inside} addr add {address}/24 dev {end}"]
        commands += [f"{inside} link set {end} up", f"{inside} link set lo up"]
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


def _holder(name: str, script: str) -> "subprocess.Popen[bytes]":
    """Start the process that keeps a host, and wait until its folders are as they are to be."""
    inside = ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-ec"]
    process = subprocess.Popen(
        [*inside, f"{script}; echo ready; exec sleep infinity"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", "a host's folders cannot be mounted"
    return process


def _wait_for(host: Host, environment: Mapping[str, str], logs: Path) -> None:
    """Wait until Ray's head answers at its port."""
    ask = f"import socket; socket.create_connection(('{host.address}', {PORT}), 1)"
    deadline = time.monotonic() + 60
    while host.start([sys.executable, "-c", ask], environment, logs / "asked.log").wait():
        assert time.monotonic() < deadline, (logs / "first.log").read_text()
        time.sleep(0.5)


def _remove(name: str) -> None:
    """End everything in a host's network, and remove it."""
    for sent in ("-TERM", "-KILL"):
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        if pids := found.stdout.split():
            subprocess.run(["kill", sent, *pids], capture_output=True, check=False)
            time.sleep(1.0)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
