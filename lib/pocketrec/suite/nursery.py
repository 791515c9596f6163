"""Starts runs quickly, from a process that has already imported what their notebook imports.

Started from nothing, a run's worker and kernel spend eight seconds of a core on imports, more than a small training
takes. Here one process imports once, forks for every run, and its children share what it has read:

    runner  --asks-->  nursery  --fork-->  keeper  --fork-->  worker  --fork-->  kernel
                                           tells the runner    papermill          waits for its connection file
                                           how the worker ended

The worker is a process of its own as before: it is watched, killed and recorded alike. Nothing that starts threads
or takes memory of a GPU runs before the last fork. Linux only; elsewhere, and for runs on a GPU, workers start cold.

    python -m pocketrec.suite.nursery FD NOTEBOOK
"""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pocketrec.suite import execute
from pocketrec.suite.process import family, kill
from pocketrec.suite.spec import Template

LARGEST, MOST_FILES = 2**20, 8  # of a request
IMPORTING_SECONDS = 120
INLINE = "module://matplotlib_inline.backend_inline"  # what a kernel would set before it imports matplotlib


class Nursery:
    """The runner's side: one nursery for a template and an environment."""

    def __init__(self, template: Template, environment: dict[str, str]) -> None:
        self.asked = threading.Lock()
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pocketrec.suite.nursery", str(theirs.fileno()), str(template.path)],
                env={**environment, "MPLBACKEND": INLINE},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def start(self, folder: Path, log: int, environment: dict[str, str], locks: Sequence[int]) -> "Worker":
        """Start the worker of a run's folder, which holds the locks until it ends.

        Raises:
            OSError: when the nursery cannot; the run may then start cold.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"folder": str(folder), "environment": environment}).encode()
        with theirs, self.asked:
            socket.send_fds(self.line, [request], [theirs.fileno(), log, *locks])
        ours.settimeout(IMPORTING_SECONDS)
        pid = ours.recv(64)
        if not pid:
            raise ConnectionError("the nursery has ended")
        return Worker(int(pid), ours)

    def close(self) -> None:
        """End the nursery; its workers go on."""
        self.line.close()
        self.process.wait()


class Worker:
    """A forked worker, as `subprocess.Popen` would show it."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid, self.line = pid, line
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit code, or minus the signal that ended it."""
        if self.returncode is None:
            self.line.settimeout(timeout)
            try:
                code = self.line.recv(64)
            except TimeoutError:
                raise subprocess.TimeoutExpired("worker", timeout or 0) from None
            self.returncode = int(code) if code else -signal.SIGKILL
            self.line.close()
        return self.returncode


class Kernel:
    """A forked kernel that waits for its connection file, as `subprocess.Popen` would show it."""

    stdin = stdout = stderr = None

    def __init__(self, inherited: Sequence[int]) -> None:
        waits, self.tell = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            for descriptor in (self.tell, *inherited):
                os.close(descriptor)
            _be_kernel(waits)
        os.close(waits)
        os.setpgid(self.pid, self.pid)  # a group of its own, which an interrupt is sent to

    def launch(self, command: Sequence[str], environment: dict[str, str] | None) -> "Kernel":
        """Make it the kernel that a command line would have started."""
        order = {"argv": list(command[command.index("-f") :]), "environment": environment or dict(os.environ)}
        with os.fdopen(self.tell, "w") as pipe:
            json.dump(order, pipe)
        return self

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.returncode is None:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        deadline = time.monotonic() + (timeout or float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("kernel", timeout or 0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def serve(line: socket.socket, template: Template) -> None:
    """Import, then fork for every request until the runner hangs up."""
    _import(template)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are nobody's to wait for
    while True:
        request, files, _, _ = socket.recv_fds(line, LARGEST, MOST_FILES)
        if not request:
            return
        if not os.fork():
            line.close()
            _never_return(_keep, json.loads(request), *files)
        for descriptor in files:
            os.close(descriptor)


def _import(template: Template) -> None:
    """Run the import statements of the notebook, and import what executes it; the notebook itself shows an error."""
    import papermill  # noqa: F401

    for source in template.code:
        with suppress(SyntaxError):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    with suppress(Exception):
                        exec(compile(ast.Module([node], []), str(template.path), "exec"), {})
    if "torch" in sys.modules:
        import torch._dynamo  # noqa: F401  the first optimizer of a process would, for three seconds


def _never_return(work: Callable[..., int], *given: Any, **named: Any) -> None:
    """End a forked process with what its work returns, without the exit handlers of its parent."""
    code = 1
    try:
        code = work(*given, **named)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _keep(request: dict[str, Any], line: int, log: int, *locks: int) -> int:
    """Fork the worker and tell the runner its number, and in the end its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if not pid:
        _never_return(_work, request, line, log, locks)
    for descriptor in (log, *locks):
        os.close(descriptor)
    with socket.socket(fileno=line) as runner:
        runner.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        with suppress(OSError):
            runner.send(str(os.waitstatus_to_exitcode(status)).encode())
    return 0


def _work(request: dict[str, Any], line: int, log: int, locks: Sequence[int]) -> int:
    """Be the worker of a run: execute its notebook in a kernel that is forked before any thread starts."""
    from jupyter_client.provisioning import local_provisioner

    os.setsid()
    os.chdir(request["folder"])
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    kernel, cold = Kernel((line, log, *locks)), local_provisioner.launch_kernel
    kernels = [kernel]  # a second one, should the first not come up, starts cold

    def launch(command: Sequence[str], **given: Any) -> Any:
        return kernels.pop().launch(command, given.get("env")) if kernels else cold(command, **given)

    local_provisioner.launch_kernel = launch
    threading.Thread(target=_end_with_the_runner, args=(line,), daemon=True).start()
    return execute.main("job.json")


def _end_with_the_runner(line: int) -> None:
    socket.socket(fileno=line).recv(1)  # nothing is sent this way: it returns when the runner is gone
    kill(family(os.getpid())[1:])
    os._exit(1)


def _be_kernel(waits: int) -> None:
    """Wait to be launched, and be a kernel until the end; without a launch there is nothing to do."""
    with os.fdopen(waits) as pipe:
        order = pipe.read()
    if not order:
        os._exit(0)
    _never_return(_launch, **json.loads(order))


def _launch(argv: list[str], environment: dict[str, str]) -> int:
    from ipykernel.kernelapp import IPKernelApp

    os.environ.clear()
    os.environ.update(environment)
    IPKernelApp.launch_instance(argv=[*argv, f"--IPKernelApp.parent_handle={os.getppid()}"])
    return 0


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), Template(Path(sys.argv[2])))
