"""Answer `tser.child.run_child` from a process that has imported its script already.

Starting Python for each of thousands of files takes most of the time. A server imports the script
once, as a program of its own would, and forks for each call: the same function, with the same
limits of memory and time, on the same file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Server:
    """Runs one script, as often as asked."""

    def __init__(self, script: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.preforked", str(script)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, arguments: Sequence[str], seconds: float) -> dict[str, Any]:
        """The status (minus the signal's number), output and peak memory [bytes] of one call."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the server has no pipes")
        self._process.stdin.write(json.dumps([list(arguments), seconds]) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


class Children:
    """Stands in for `tser.child.run_child`.

    Attributes:
        peak: most memory that a child had beyond its server's [bytes].
    """

    def __init__(self) -> None:
        self._servers: dict[Path, Server] = {}
        self.peak = 0

    def __call__(
        self, script: Path, arguments: Sequence[str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """As `tser.child.run_child`."""
        if script not in self._servers:
            self._servers[script] = Server(script)
        answer = self._servers[script](arguments, seconds)
        self.peak = max(self.peak, answer["peak"])
        if answer["status"] == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(str(script), seconds)
        return subprocess.CompletedProcess([], answer["status"], answer["output"], "")

    def close(self) -> None:
        """End all servers."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()


def _call(main: Any, arguments: list[str], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                os.dup2(output.fileno(), 1)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace")
                signal.setitimer(signal.ITIMER_REAL, seconds)
                status = main(*arguments)
                sys.stdout.flush()
            os._exit(status)
        _, ended, usage = os.wait4(child, 0)
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    status = os.waitstatus_to_exitcode(ended)
    return {"status": status, "output": text, "peak": usage.ru_maxrss * 1024 - _resident()}


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def serve(script: str) -> None:
    """Answer calls that come on stdin, one JSON line each, until it is closed."""
    spec = importlib.util.spec_from_file_location("child", script)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{script} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for line in sys.stdin:
        arguments, seconds = json.loads(line)
        print(json.dumps(_call(module.main, arguments, seconds)), flush=True)  # noqa: T201


if __name__ == "__main__":
    serve(sys.argv[1])
