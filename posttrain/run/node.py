"""The node of the Ray cluster that a process runs on: where others reach it, and through what interface."""

import ipaddress
import os
import socket

import psutil
import ray

LOOPBACK = "127.0.0.1"
#: What says to gloo and to NCCL through which network interface they meet. Without it gloo asks for the
#: address of the host's name, which is often none that other hosts reach.
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
#: Connections that may wait to be accepted: those of every process that meets there, at once.
BACKLOG = 4096


class NodeError(RuntimeError):
    """This node cannot be reached as Ray says; the message tells what to look at."""


def node_address() -> str:
    """Return the address at which all processes of the cluster reach this node.

    It is loopback where the cluster is this machine alone, so that nothing can be reached from elsewhere;
    else the node's address as Ray knows it.
    """
    if not ray.is_initialized() or sum(node["Alive"] for node in ray.nodes()) <= 1:
        return LOOPBACK
    return ray.util.get_node_ip_address()


def host_and_port(address: str, port: int) -> str:
    """Write an address and a port as URLs have them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def listen(address: str) -> socket.socket:
    """Listen at a free port of an address; whoever is given the socket has the port for certain.

    Raises:
        NodeError: If the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.bind((address, 0))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise NodeError(
            f"cannot listen at {address}, which Ray takes for the address of {socket.gethostname()}"
            f" ({error}): start Ray there with --node-ip-address, one of its own that the others reach"
        ) from error
    return listener


def interface_of(address: str) -> str:
    """Return the name of the network interface that has an address.

    Raises:
        NodeError: If none has it.
    """
    wanted = ipaddress.ip_address(address)
    for name, entries in psutil.net_if_addrs().items():
        known = [each.address for each in entries if each.family in (socket.AF_INET, socket.AF_INET6)]
        if any(ipaddress.ip_address(each.partition("%")[0]) == wanted for each in known):
            return name
    raise NodeError(
        f"no network interface of {socket.gethostname()} has {address}, the address that Ray knows it by:"
        f" start Ray there with --node-ip-address, or set {' and '.join(INTERFACE_VARIABLES)}"
    )


def use_interface_of(address: str) -> None:
    """Have gloo and NCCL meet the other processes through the interface of an address.

    Variables that are set already stay as they are.

    Raises:
        NodeError: If they are not set, and no interface has the address.
    """
    missing = [name for name in INTERFACE_VARIABLES if not os.environ.get(name)]
    if missing:
        os.environ.update(dict.fromkeys(missing, interface_of(address)))
