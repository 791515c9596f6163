"""Runs as tasks of a Ray cluster that is up, whose address stands in `RAY_ADDRESS`."""

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pocketrec.errors import UserError
from pocketrec.suite import process
from pocketrec.suite.executors import remote
from pocketrec.suite.executors.remote import NoResult, Parcel
from pocketrec.suite.job import Ended
from pocketrec.suite.plan import Run
from pocketrec.suite.spec import Suite

HELP = "`make cluster-help` says how to start one"
PATIENCE_SECONDS = 60  # for a machine that offers what a waiting run asks for to come back
LOOK_SECONDS = 5
STOP_SECONDS = 10
PROBE_SECONDS = 300


@dataclass(frozen=True)
class Machine:
    """A node of the cluster and all that it offers, taken or free."""

    node: str
    address: str
    cpus: int
    gpus: int

    def holds(self, cpus: int, gpus: int) -> int:
        """How many runs that ask for this it holds at a time."""
        return min(self.cpus // cpus, self.gpus // gpus) if gpus else self.cpus // cpus


def wanted(run: Run, machines: list[Machine]) -> tuple[int, int]:
    """CPUs and GPUs that a run asks for; a timed one takes all CPUs of a largest machine, and so is alone on it."""
    cpus, gpus = remote.asks(run)
    if run.kind == "timed":
        cpus = max([cpus, *(machine.cpus for machine in machines if machine.gpus >= gpus)])
    return cpus, gpus


class Ray:
    """Runs are tasks, which Ray places and never retries: the loss of a machine is seen and said here."""

    def __init__(self, suite: Suite) -> None:
        self.limits = suite.limits
        self.address = os.environ.get("RAY_ADDRESS", "")
        self.seen: list[Machine] = []
        self.seen_at = float("-inf")

    def prepare(self, runs: list[Run]) -> list[Run]:
        """Join the cluster; refuse what no machine offers, and machines with other code."""
        if not ray.is_initialized():
            _join(self.address)
        machines = self.machines()
        for run in runs:
            cpus, gpus = wanted(run, machines)
            if not any(machine.holds(cpus, gpus) for machine in machines):
                offers = "; ".join(f"{m.address} {_offer(m.cpus, m.gpus)}" for m in machines)
                raise UserError(f"{run.name} asks for {_offer(cpus, gpus)} on one machine; the cluster has: {offers}")
        _probe(machines)
        return runs

    def slots(self, runs: list[Run]) -> int:
        """As many as the cluster holds now; more can be submitted, and wait for machines that join."""
        machines = self.machines()
        cpus, gpus = (min(amounts) for amounts in zip(*(wanted(run, machines) for run in runs), strict=True))
        return max(1, sum(machine.holds(cpus, gpus) for machine in machines))

    def execute(
        self, run: Run, folder: Path, lock: int, stopped: Callable[[], bool], say: Callable[[str], None]
    ) -> Ended:
        """Execute a run on some machine of the cluster."""
        return remote.execute(run, folder, partial(self._once, run, folder.name, stopped), stopped, say)

    def close(self) -> None:
        """Nothing: the process leaves the cluster when it ends."""

    def machines(self) -> list[Machine]:
        """Machines that are up, as seen some seconds ago at most."""
        if time.monotonic() - self.seen_at > LOOK_SECONDS:
            self.seen = [_machine(node) for node in ray.nodes() if node["Alive"]]
            self.seen_at = time.monotonic()
        return self.seen

    def _once(self, run: Run, name: str, stopped: Callable[[], bool], parcel: Parcel) -> tuple[Ended, Parcel]:
        cpus, gpus = wanted(run, self.machines())
        task = ray.remote(remote.carry_out).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        result = task.remote(run, name, parcel, self.limits, remote.fingerprint())
        self._wait(result, cpus, gpus, stopped)
        try:
            return ray.get(result, timeout=STOP_SECONDS if stopped() else None)
        except RayTaskError as error:
            raise NoResult(f"{type(error.cause).__name__}: {error.cause}", "failed", again=False) from None
        except OutOfMemoryError:
            raise NoResult("Ray ended it, since its machine had no memory left", "oom") from None
        except RayError as error:
            raise NoResult(f"its machine was lost ({type(error).__name__})") from None

    def _wait(self, result: ray.ObjectRef, cpus: int, gpus: int, stopped: Callable[[], bool]) -> None:
        """Wait for the end of a task, or until it is stopped, or no machine has offered its share for a while."""
        offered = time.monotonic()
        while not ray.wait([result], timeout=process.POLL_SECONDS)[0]:
            if any(machine.holds(cpus, gpus) for machine in self.machines()):
                offered = time.monotonic()
            waited = time.monotonic() - offered > PATIENCE_SECONDS
            if waited or stopped():
                ray.cancel(result)
            if waited:
                raise NoResult(f"no machine of the cluster offers {_offer(cpus, gpus)} any more")
            if stopped():
                return


def _machine(node: dict[str, Any]) -> Machine:
    cpus, gpus = (int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
    return Machine(node["NodeID"], node["NodeManagerAddress"], cpus, gpus)


def _offer(cpus: int, gpus: int) -> str:
    return f"{cpus} CPU{'s' * (cpus != 1)}, {gpus} GPU{'s' * (gpus != 1)}"


def _join(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--executor ray needs RAY_ADDRESS=HOST:PORT of a cluster, got {address!r}; {HELP}")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(f"RAY_ADDRESS={address}: no cluster answers there ({error}); {HELP}") from None
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        raise UserError(f"RAY_ADDRESS={address}: {str(error).splitlines()[0]}; {HELP}") from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray would end the process at once, and leave no record of its runs


def _code() -> str:
    return remote.fingerprint()  # which Ray does not take as it is: it remembers its answer


def _probe(machines: list[Machine]) -> None:
    """Refuse a machine that has other code, or none."""
    probes = {}
    for machine in machines:
        there = NodeAffinitySchedulingStrategy(machine.node, soft=False)
        probe = ray.remote(_code).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
        probes[machine.address] = probe.remote()
    for address, probe in probes.items():
        try:
            same = ray.get(probe, timeout=PROBE_SECONDS) == remote.fingerprint()
        except GetTimeoutError:
            raise UserError(f"{address}: does not answer; start its Ray processes again") from None
        except RayError as error:
            reason = str(error.cause if isinstance(error, RayTaskError) else error).splitlines()[0]
            raise UserError(f"{address}: pocketrec cannot be used there: {reason}") from None
        if not same:
            raise UserError(f"{address}: has other code than this machine; bring both to the same commit")
