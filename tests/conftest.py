"""Rules for every test: nothing leaves this machine."""

import ipaddress
import signal
import socket
from typing import Any

import pytest

# A shell lets what it runs in the background ignore Ctrl-C, and nohup SIGHUP; tests send both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _is_local(address: Any) -> bool:
    """Whether a socket address stays on this machine: a path, ``localhost`` or loopback."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host in ("", "localhost")


@pytest.fixture(autouse=True)
def _closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def guard(call: Any) -> Any:
        def guarded(self: socket.socket, address: Any, *rest: Any) -> Any:
            if not _is_local(address):
                pytest.fail(f"a test tried to reach {address[0]}; tests run without a network")
            return call(self, address, *rest)

        return guarded

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guard(getattr(socket.socket, name)))
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host is not None and not _is_local((host if isinstance(host, str) else host.decode(),)):
            pytest.fail(f"a test looked up {host}; tests run without a network")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
