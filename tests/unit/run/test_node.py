"""The address of this node, and the interface that has it."""

import os
import socket

import pytest

from posttrain.run.node import (
    INTERFACE_VARIABLES,
    NodeError,
    interface_of,
    listen,
    node_address,
    use_interface_of,
)


def test_a_machine_alone_is_reached_on_loopback_only():
    assert node_address() == "127.0.0.1"
    with listen(node_address()) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        socket.create_connection((host, port), timeout=5).close()


def test_the_interface_is_named_unless_the_user_has(monkeypatch: pytest.MonkeyPatch):
    for name in INTERFACE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(INTERFACE_VARIABLES[1], "eth7")
    use_interface_of("127.0.0.1")
    assert os.environ[INTERFACE_VARIABLES[0]] == interface_of("127.0.0.1") == "lo"
    assert os.environ[INTERFACE_VARIABLES[1]] == "eth7"


def test_an_address_of_another_machine_is_refused_with_what_to_do():
    with pytest.raises(NodeError, match="--node-ip-address"):
        interface_of("192.0.2.77")
    with pytest.raises(NodeError, match="--node-ip-address"):
        listen("192.0.2.77")
