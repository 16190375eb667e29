"""The rules of this test run are in force."""

import importlib
import socket
import sys

import pytest


def test_annotations_are_checked() -> None:
    importlib.import_module("tser.files")
    # Packages are left out: what an __init__.py re-exports is checked where it is defined.
    unchecked = [
        name
        for name, module in sys.modules.items()
        if name.startswith("tser.") and not hasattr(module, "__path__")
        if type(module.__loader__).__name__ != "_JaxtypingLoader"
    ]
    assert not unchecked


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.invalid"])
def test_the_network_is_closed(host: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="without a network"):
        socket.create_connection((host, 80), timeout=1)


def test_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
