"""Runs on other machines: a Ray cluster of two nodes that share nothing, and jobs of submitit on this machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from tests.suite.conftest import ACT, LATENCY, LATENCY_PARAMETERS, PARAMETERS, PREAMBLE, PUBLISH, Root

import pocketrec
from pocketrec import paths
from pocketrec.errors import UserError
from pocketrec.suite import executors
from pocketrec.suite.executors import remote
from pocketrec.suite.executors.remote import NoResult
from pocketrec.suite.spec import Limits

PATIENCE = 900  # seconds; on a busy machine a cluster takes its time
pytestmark = pytest.mark.timeout(2 * PATIENCE)
PLANTED = "source: planted\noptions: {rows: 2000, scale: 0.0001, seed: 0}\n"
LOSE_MACHINE = """
import psutil
lost = root / "lost"
if act == "lose" and not lost.exists():
    lost.touch()
    psutil.Process(os.getppid()).parent().kill()
    time.sleep(60)
if act == "wait": time.sleep(4)
"""


class Site(Root):
    """A machine's checkout, with a real dataset; what runs there is the library as it is."""

    command = (sys.executable, "-m", "pocketrec.suite.cli")
    patience = PATIENCE

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("params/datasets/planted.yaml", PLANTED)
        self.notebook("train", PARAMETERS.replace("tiny", "planted"), PREAMBLE, LOSE_MACHINE, ACT, PUBLISH)
        self.notebook("latency", LATENCY_PARAMETERS, LATENCY)

    @property
    def environment(self) -> dict[str, str]:
        own = {"POCKETREC_ROOT": str(self.path), "POCKETREC_DATA": str(self.path / "data"), "COLUMNS": "200"}
        library = os.pathsep.join([str(Path(pocketrec.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        return (
            os.environ
            | own
            | {"PYTHONPATH": library, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_register_timeout_seconds": "600"}
        )


def wait_until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def statuses(site, suite):
    return {name.rpartition("/")[2]: found["status"] for name, found in site.records(suite).items()}


# what happens to a run whose machine is lost


SUITE = SimpleNamespace(limits=Limits())


def made_run(kind="quality", **parameters):
    """As much of a run as an executor looks at."""
    return SimpleNamespace(
        suite="jobs", name="robe/planted/r100-s0", source="", folder=Path(), kind=kind, parameters=parameters
    )


def attempts(tmp_path, *results):
    """Execute with these results, one an attempt; return how it ended and what was said."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.ipynb").write_text("{}")
    left, said = list(results), []

    def once(parcel):
        result = left.pop(0)
        if isinstance(result, NoResult):
            raise result
        there = tmp_path / "there"
        remote.unpack(parcel, there)
        (there / "run" / "made.txt").write_text(result)
        return result, remote.pack(there / "run")

    return remote.execute(made_run(), folder, once, lambda: False, said.append), said, folder


def test_a_folder_travels_there_and_back(tmp_path):
    ended, said, folder = attempts(tmp_path, "done")
    assert (ended, said) == ("done", [])
    assert sorted(file.name for file in folder.iterdir()) == ["made.txt", "run.ipynb"]


def test_a_lost_run_is_tried_again(tmp_path):
    ended, said, folder = attempts(tmp_path, NoResult("its node died"), NoResult("its node died"), "done")
    assert (ended, said) == ("done", ["its node died; tried again"] * 2)
    assert (folder / "made.txt").exists()


def test_a_run_that_is_always_lost_has_crashed(tmp_path):
    ended, said, folder = attempts(tmp_path, *[NoResult("its node died")] * 3)
    assert ended.outcome == {"status": "crashed", "reason": "its node died (3 times)"} and len(said) == 2
    assert (folder / "log.txt").read_text() == "its node died (3 times)\n"


def test_what_another_attempt_would_not_mend_is_not_tried_again(tmp_path):
    ended, said, _ = attempts(tmp_path, NoResult("longer than Slurm was asked for", "timeout", again=False))
    assert ended.outcome == {"status": "timeout", "reason": "longer than Slurm was asked for"} and not said


@pytest.mark.parametrize("name", ["ray", "submitit"])
def test_a_package_that_is_missing_is_said_in_one_sentence(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"--executor {name}: the package is missing: pip install"):
        executors.find(name)


# Ray

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the package ray is not installed")


@needs_ray
def test_what_a_run_asks_for():
    from pocketrec.suite.executors.ray import Machine, wanted

    small, large, gpu = Machine("a", "1", 4, 0), Machine("b", "2", 16, 0), Machine("c", "3", 8, 2)
    machines = [small, large, gpu]
    assert wanted(made_run(), machines) == (1, 0)
    assert wanted(made_run(threads=2, device="cuda:0"), machines) == (2, 1)
    assert wanted(made_run(threads=2, nproc=2, device="cuda"), machines) == (4, 2)
    assert wanted(made_run("timed", threads=2), machines) == (16, 0), "alone on a largest machine"
    assert wanted(made_run("timed", threads=2, device="cuda"), machines) == (8, 1), "alone on a largest one with a GPU"
    assert [machine.holds(2, 0) for machine in machines] == [2, 8, 4]
    assert [machine.holds(2, 1) for machine in machines] == [0, 0, 2]


@needs_ray
@pytest.mark.parametrize("address", ["", "head", "127.0.0.1:1"])
def test_a_cluster_that_does_not_answer(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match="RAY_ADDRESS=.*`make cluster-help` says how to start one"):
        executors.find("ray")(SUITE).prepare([])


def once(monkeypatch, result=None, machines=1, ready=True):
    """Execute a run on a stand-in for Ray; return what came of it and how many tasks were cancelled."""
    from pocketrec.suite.executors import ray

    def get(task, timeout):
        if isinstance(result, Exception):
            raise result
        return result

    cancelled = []
    node = {"NodeID": "a", "NodeManagerAddress": "1", "Alive": True, "Resources": {"CPU": 2.0}}
    task = SimpleNamespace(options=lambda **asked: SimpleNamespace(remote=lambda *given: "task"))
    stand_in = SimpleNamespace(
        remote=lambda function: task,
        wait=lambda tasks, timeout: (tasks if ready else [], []),
        get=get,
        nodes=lambda: [node] * machines,
        cancel=cancelled.append,
    )
    monkeypatch.setattr(ray, "ray", stand_in)
    monkeypatch.setattr(ray, "PATIENCE_SECONDS", 0)
    try:
        return ray.Ray(SUITE)._once(made_run(), "run", lambda: False, b""), cancelled
    except NoResult as problem:
        return (str(problem), problem.status, problem.again), cancelled


@needs_ray
def test_what_ray_says_of_a_task(monkeypatch):
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

    assert once(monkeypatch, ("ended", b"")) == (("ended", b""), [])
    for error in (WorkerCrashedError(), NodeDiedError("gone")):
        lost = f"its machine was lost ({type(error).__name__})"
        assert once(monkeypatch, error) == ((lost, "crashed", True), [])
    assert once(monkeypatch, OutOfMemoryError("full"))[0][1:] == ("oom", True)
    fault = RayTaskError("carry_out", "a trace", ValueError("wrong"))
    assert once(monkeypatch, fault)[0] == ("ValueError: wrong", "failed", False)


@needs_ray
def test_a_run_that_no_machine_can_take_any_more_is_cancelled(monkeypatch):
    message = "no machine of the cluster offers 1 CPU, 0 GPUs any more"
    assert once(monkeypatch, machines=0, ready=False) == ((message, "crashed", True), ["task"])


class Node:
    """A machine of its own: a network namespace, a checkout, a data folder."""

    def __init__(self, number: int, path: Path) -> None:
        self.namespace, self.address = f"pocketrec-{os.getpid()}-{number}", f"10.77.0.{number}"
        self.site = Site(path)
        self.scratch = Path(tempfile.mkdtemp(prefix="pr-", dir="/tmp"))  # short: sockets lie below it

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)

    def join(self, *arguments: str, cpus: int) -> None:
        ray = [*self.prefix, sys.executable, "-m", "ray.scripts.scripts", "start", *arguments]
        here = [f"--node-ip-address={self.address}", f"--temp-dir={self.scratch}"]
        small = [f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=100000000"]
        lean = ["--include-log-monitor=false", *(["--include-dashboard=false"] if "--head" in arguments else [])]
        for _ in range(4):  # Ray gives a node 30 seconds to start, and a busy machine may need more
            done = subprocess.run(
                [*ray, *here, *small, *lean],
                env=self.site.environment | {"TMPDIR": str(self.scratch)},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            if "timed out during startup" not in done.stdout + done.stderr:
                break
            self.die()
        assert done.returncode == 0, done.stdout + done.stderr

    def call(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """Start the command line on this machine."""
        return self.site.start(*arguments, prefix=self.prefix, TMPDIR=str(self.scratch), **environment)

    def die(self) -> None:
        """End every process of the machine at once."""
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True).stdout
        processes = [psutil.Process(int(pid)) for pid in found.split() if psutil.pid_exists(int(pid))]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=20)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two machines side by side: a head with two CPUs, and another one with two."""
    if find_spec("ray") is None:
        pytest.skip("the package ray is not installed")
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip (package iproute2)")
    nodes = [Node(number, tmp_path_factory.mktemp(f"node{number}")) for number in (1, 2)]
    head, other = nodes
    try:
        try:
            for node in nodes:
                ip("netns", "add", node.namespace)
            peer = ("peer", "name", "eth0", "netns", other.namespace)
            ip("link", "add", "eth0", "netns", head.namespace, "type", "veth", *peer)
            for node in nodes:
                ip("-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    ip("-n", node.namespace, "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"cannot make network namespaces: {error.stderr.strip()}")
        head.join("--head", "--port=6379", cpus=2)
        other.join(f"--address={head.address}:6379", cpus=2)
        yield nodes
    finally:
        for node in nodes:
            node.die()
            subprocess.run(["ip", "netns", "del", node.namespace], capture_output=True)
            shutil.rmtree(node.scratch, ignore_errors=True)


def on_ray(cluster, *arguments: str, **environment: str) -> subprocess.Popen:
    head = cluster[0]
    return head.call(*arguments, "--executor", "ray", RAY_ADDRESS=f"{head.address}:6379", **environment)


@pytest.mark.slow
def test_runs_of_a_cluster_are_those_of_one_machine(cluster):
    head, other = cluster
    text = (
        "timed: latency\nfixed: {repeats: 3}\ngrid: {method: robe, dataset: planted, act: wait, seed: [0, 1, 2, 3]}\n"
    )
    head.site.suite("grid", text)
    process = on_ray(cluster, "run", "grid")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert len(head.site.ran()) + len(other.site.ran()) == 4 and other.site.ran(), "both machines took part"
    assert not (other.site.path / "results").exists(), "nothing is kept but by the head"
    found = head.site.records("grid")
    assert len(found) == 5 and {record["status"] for record in found.values()} == {"done"}
    timed = found.pop("robe/planted/r100-latency-actwait")
    assert timed["speed"] == [{"part": "model", "batch": 1, "p50_ms": 0.75}]
    assert all(timed["started"] > record["started"] for record in found.values())
    assert all(record["environment"]["cpu"] and record["seconds"] > 4 for record in found.values())
    shutil.copytree(head.site.path / "results", head.site.path / "results.ray")
    shutil.rmtree(head.site.path / "results")
    assert head.site.call("run", "grid")[0] == 0
    local = head.site.records("grid")
    shared = ("key", "parameters", "metrics", "sizes", "data", "environment", "suite", "kind", "status")
    assert all({k: found[n].get(k) for k in shared} == {k: local[n].get(k) for k in shared} for n in found)
    shutil.rmtree(head.site.path / "results")
    (head.site.path / "results.ray").rename(head.site.path / "results")
    assert "nothing to do" in head.site.call("run", "grid")[1]


@pytest.mark.slow
def test_a_cluster_that_lacks_what_a_run_asks_for_says_so_at_once(cluster):
    for fixed, message in (("device: cuda", "1 CPU, 1 GPU"), ("threads: 64", "64 CPUs, 0 GPUs")):
        cluster[0].site.suite("greedy", f"fixed: {{{fixed}}}\ngrid: {{method: robe, dataset: planted}}\n")
        process = on_ray(cluster, "run", "greedy")
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert f"r100-s0 asks for {message} on one machine; the cluster has: 10.77.0." in err
        assert not cluster[0].site.records("greedy")


@pytest.mark.slow
def test_machines_with_other_code_are_refused(cluster, tmp_path):
    shutil.copytree(Path(pocketrec.__file__).parent, tmp_path / "pocketrec")
    with (tmp_path / "pocketrec/optim.py").open("a") as file:
        file.write("\n# changed\n")
    cluster[0].site.suite("other", "grid: {method: robe, dataset: planted}\n")
    process = on_ray(cluster, "run", "other", PYTHONPATH=str(tmp_path))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "has other code than this machine; bring both to the same commit" in err


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_is_run_again(cluster):
    site = cluster[0].site
    site.suite("worker", "grid: {method: robe, dataset: planted, act: lose}\n")
    process = on_ray(cluster, "run", "worker")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert "its machine was lost (WorkerCrashedError); tried again" in out
    assert statuses(site, "worker") == {"r100-s0-actlose": "done"}


@pytest.mark.slow
def test_failures_of_notebooks_come_back_as_they_are(cluster):
    site = cluster[0].site
    site.suite("ways", "grid: {method: robe, dataset: planted, act: [raise, kill, diverge]}\n")
    process = on_ray(cluster, "run", "ways")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, out + err
    assert statuses(site, "ways") == {
        "r100-s0-actraise": "failed",
        "r100-s0-actkill": "crashed",
        "r100-s0-actdiverge": "diverged",
    }
    notebook = json.loads((site.path / "results/ways/runs/robe/planted/r100-s0-actraise/run.ipynb").read_text())
    assert any(output.get("ename") == "ValueError" for cell in notebook["cells"] for output in cell.get("outputs", []))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_continued_on_a_cluster(cluster, number):
    sites = [node.site for node in cluster]
    name, ran = f"stop{number}", [len(site.ran()) for site in sites]
    sites[0].suite(name, "grid: {method: robe, dataset: planted, act: sleep}\n")
    process = on_ray(cluster, "run", name)
    wait_until(lambda: [len(site.ran()) for site in sites] != ran)
    (site,) = [site for site, before in zip(sites, ran, strict=True) if len(site.ran()) > before]
    kernel = psutil.Process(site.kernels()[-1])
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, out + err
    wait_until(lambda: not kernel.is_running())
    assert statuses(sites[0], name) == {"r100-s0-actsleep": "interrupted"}


@pytest.mark.slow
def test_a_machine_that_dies_in_the_middle_loses_and_doubles_nothing(cluster):
    head, other = cluster
    ran = len(head.site.ran()), len(other.site.ran())
    head.site.suite("death", "grid: {method: robe, dataset: planted, act: wait, seed: [0, 1, 2, 3, 4, 5]}\n")
    process = on_ray(cluster, "run", "death")
    wait_until(lambda: len(other.site.ran()) > ran[1])
    other.die()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert "its machine was lost" in out and "tried again" in out
    assert statuses(head.site, "death") == {f"r100-s{seed}-actwait": "done" for seed in range(6)}
    assert out.count(": done ") == 6, "each is recorded once"
    assert len(head.site.ran()) - ran[0] >= 5, "the head ran again what was lost"
    assert not list(head.site.path.glob("results/death/runs/*/*/.*.running"))
    assert "nothing to do" in head.site.call("run", "death")[1]


# submitit


def slurm(*words: str) -> str:
    """Return what a command of Slurm says; empty where there is no Slurm that answers."""
    if not shutil.which(words[0]):
        return ""
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


needs_submitit = pytest.mark.skipif(find_spec("submitit") is None, reason="the package submitit is not installed")
needs_slurm = pytest.mark.skipif(not slurm("sinfo", "--noheader"), reason="no Slurm answers here")
on_clusters = pytest.mark.parametrize("cluster", ["local", pytest.param("slurm", marks=needs_slurm)])


@pytest.mark.slow
@needs_submitit
@on_clusters
def test_jobs_of_submitit(tmp_path, cluster):
    site = Site(tmp_path)
    site.write("params/submitit.yaml", f"cluster: {cluster}\njobs: 2\noptions: {{slurm_comment: a test}}\n")
    site.suite("jobs", "timed: latency\ngrid: {method: robe, dataset: planted, act: [ok, raise]}\n")
    code, out, err = site.call("run", "jobs", "--executor", "submitit")
    assert code == 1, out + err
    assert statuses(site, "jobs") == {
        "r100-s0-actok": "done",
        "r100-s0-actraise": "failed",
        "r100-latency-actok": "done",
    }
    (site.path / "mended").touch()
    assert site.call("retry", "jobs", "--executor", "submitit")[0] == 0
    assert set(statuses(site, "jobs").values()) == {"done"} and len(statuses(site, "jobs")) == 4
    assert not list((site.path / "results/jobs/.submitit").iterdir())


@pytest.mark.slow
@needs_submitit
@on_clusters
def test_a_job_of_submitit_that_is_killed_is_run_again(tmp_path, cluster):
    site = Site(tmp_path)
    site.write("params/submitit.yaml", f"cluster: {cluster}\n")
    site.suite("lost", "grid: {method: robe, dataset: planted, act: lose}\n")
    code, out, err = site.call("run", "lost", "--executor", "submitit")
    assert code == 0, out + err
    assert "its job ended without a result" in out and "tried again" in out
    assert statuses(site, "lost") == {"r100-s0-actlose": "done"}


@pytest.mark.slow
@needs_submitit
@needs_slurm
def test_a_job_that_a_person_cancels_ends_its_run(tmp_path):
    site = Site(tmp_path)
    site.suite("cancelled", "grid: {method: robe, dataset: planted, act: sleep}\n")
    process = site.start("run", "cancelled", "--executor", "submitit")
    wait_until(site.ran)
    slurm("scancel", "--name=pocketrec-cancelled")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, out + err
    assert len(site.ran()) == 1, "not tried again"
    (found,) = site.records("cancelled").values()
    assert found["status"] == "interrupted"
    (site.path / "mended").touch()
    assert site.call("retry", "cancelled", "--executor", "submitit")[0] == 0
    assert statuses(site, "cancelled") == {"r100-s0-actsleep": "done"}


@pytest.mark.slow
@needs_submitit
@needs_slurm
def test_a_job_that_slurm_ends_for_its_time(tmp_path):
    site = Site(tmp_path)
    site.write("params/submitit.yaml", "options: {timeout_min: 3}\n")  # submitit is told 90 seconds before
    site.suite("late", "grid: {method: robe, dataset: planted, act: sleep}\n")
    code, out, err = site.call("run", "late", "--executor", "submitit")
    assert code == 1, out + err
    assert statuses(site, "late") == {"r100-s0-actsleep": "timeout"} and len(site.ran()) == 1


@pytest.mark.slow
@needs_submitit
@needs_slurm
@pytest.mark.skipif(os.geteuid() != 0, reason="only Slurm's administrator may take a node down")
def test_a_node_that_fails_loses_and_doubles_nothing(tmp_path):
    site = Site(tmp_path)
    site.suite("node", "grid: {method: robe, dataset: planted, act: sleep}\n")
    process = site.start("run", "node", "--executor", "submitit")
    wait_until(site.ran)
    (site.path / "mended").touch()
    (node,) = slurm("squeue", "--noheader", "--name=pocketrec-node", "--format=%N").split()
    try:
        slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        wait_until(lambda: not slurm("squeue", "--noheader", "--name=pocketrec-node", "--states=R,CG"))
    finally:
        slurm("scontrol", "update", f"nodename={node}", "state=resume")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert "its job ended without a result (NODE_FAIL); tried again" in out and out.count(": done ") == 1
    assert statuses(site, "node") == {"r100-s0-actsleep": "done"} and len(site.ran()) == 2
    assert not slurm("squeue", "--noheader", "--name=pocketrec-node"), "Slurm does not start the first one again"


@needs_submitit
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clutser: local\n", "unknown key 'clutser'; did you mean 'cluster'"),
        ("cluster: local\noptions: {slurm_partitoin: gpu}\n", "Unknown argument 'partitoin' for executor 'slurm'"),
        ("cluster: moon\n", "doesn't know any executor named moon"),
    ],
)
def test_options_that_submitit_does_not_know(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    (tmp_path / "submitit.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        executors.find("submitit")(SUITE).prepare([made_run()])
    assert "submitit.yaml: " in str(raised.value)


@needs_submitit
def test_slurm_without_accounting_is_refused(tmp_path, monkeypatch):
    for name, script in (("srun", ""), ("sacct", "echo Slurm accounting storage is disabled >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    with pytest.raises(UserError, match="sacct: Slurm accounting storage is disabled; without accounting, a job"):
        executors.find("submitit")(SUITE).prepare([made_run()])
