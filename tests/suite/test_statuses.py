"""Every way in which a run can end gives its status and reason, and the other runs go on."""

import contextlib
import errno
import json
import os
import subprocess

import pytest

from pocketrec.suite import execute, job
from pocketrec.suite.spec import Limits

ACTS = {
    "ok": ("done", None),
    "kill": ("crashed", "the notebook's kernel died without an error of Python"),
    "killworker": ("crashed", "the process that ran the notebook ended with signal SIGKILL"),
    "memory": ("oom", "more memory than the suite's limit of 0.7 GB"),
    "memoryerror": ("oom", "MemoryError: too much"),
    "torchmemory": ("oom", "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "sleep": ("timeout", "longer than the suite's limit of 0.2 minutes"),
    "diverge": ("diverged", "Diverged: the loss is nan at step 3"),
    "infeasible": ("infeasible", "Infeasible: the tables alone need 9 MB; the budget is 4 MB"),
    "nan": ("failed", "ValueError: metrics.test.auc is nan; what was not reached must be left out"),
    "rawnan": ("failed", "metrics.json cannot be used: it holds NaN"),
    "disk": ("failed", "the disk is full (OSError: [Errno 28] No space left on device)"),
    "raise": ("failed", "ValueError: first line"),
    "silent": ("failed", "the notebook ended without saving metrics.json"),
    "budget": ("failed", "103 bytes at inference are over the budget of 100 bytes"),
}
IN_THE_ACT = {"kill", "killworker", "memory", "memoryerror", "sleep", "diverge", "disk", "raise", "infeasible"}

SUITE = """
title: All ways to end
grid:
  method: robe
  ratio: 100
  "dataset, act, seed":
{rows}
limits: {{minutes: 0.2, memory_gb: 0.7}}
jobs: 3
"""


@pytest.fixture(scope="module")
def bad(shared_root):
    rows = [f"    - [tiny, {act}, {seed}]" for seed, act in enumerate(ACTS)]
    shared_root.suite("bad", SUITE.format(rows="\n".join([*rows, "    - [absent, ok, 99]"])))
    code, out, err = shared_root.call("run", "bad")
    return shared_root, code, out, err


def name_of(act: str) -> str:
    return f"robe/tiny/r100-s{list(ACTS).index(act)}-act{act}"


@pytest.mark.parametrize("act", ACTS)
def test_status_and_reason(bad, act):
    found = bad[0].records("bad")[name_of(act)]
    assert (found["status"], found.get("reason")) == ACTS[act]
    if act in IN_THE_ACT:
        assert found["failed_cell"] == 4


def test_missing_dataset_fails_its_runs_only(bad):
    found = bad[0].records("bad")["robe/absent/r100-s99-actok"]
    assert found["status"] == "failed"
    assert found["reason"].startswith("absent: the file raw.csv is missing; put it into")


def test_exit_code_and_links(bad):
    _, code, out, err = bad
    assert code == 1, err
    links = out[out.index("failed; look at") :]
    assert links.count("run.ipynb") == links.count("log.txt") == 3
    assert "1 done, 1 infeasible" in links


def test_record_of_a_run_that_is_done(bad):
    root = bad[0]
    found = root.records("bad")[name_of("ok")]
    assert found["schema"] == 1 and found["kind"] == "quality" and found["suite"] == "bad"
    assert (found["method"], found["dataset"], found["ratio"], found["seed"]) == ("robe", "tiny", 100.0, 0)
    assert found["parameters"]["epochs"] == 2.0, "the dataset's recipe"
    assert found["parameters"]["knobs"] == {"block_size": 8}
    assert "batch_size" not in found["parameters"], "the notebook has no such parameter"
    assert found["metrics"]["test"]["auc"] == 0.75 and found["sizes"]["inference_bytes"] == 102
    assert {"python", "torch", "numpy", "cpu", "cores", "memory_gb", "os"} <= found["environment"].keys()
    assert os.uname().nodename not in json.dumps(found["environment"]).split('"')


def test_a_run_folder_holds_what_it_should(bad):
    folder = bad[0].path / "results/bad/runs" / name_of("ok")
    assert {f.name for f in folder.iterdir()} == {"run.ipynb", "record.json", "log.txt", "metrics.json"}
    notebook = (folder / "run.ipynb").read_text()
    assert str(bad[0].path) not in notebook
    assert "In [3]: " in (folder / "log.txt").read_text()
    assert not list(folder.parent.glob(".*.running"))


def test_status_names_the_reasons(bad):
    code, out, _ = bad[0].call("status", "bad")
    assert code == 0
    assert "Diverged: the loss is nan at step 3" in out and "1 done, 1 infeasible" in out


def test_a_second_run_repairs_only_what_failed(bad):
    root = bad[0]
    before = root.records("bad")
    (root.path / "mended").touch()
    executed = len(root.ran())
    code, out, _ = root.call("run", "bad", "--seed", "0,1,8,10")
    assert code == 0, out
    assert sorted(root.ran()[executed:]) == ["robe-100-1-kill", "robe-100-10-rawnan"]
    after = root.records("bad")
    assert after[name_of("kill")]["status"] == after[name_of("rawnan")]["status"] == "done"
    assert after[name_of("ok")] == before[name_of("ok")]
    assert after[name_of("infeasible")] == before[name_of("infeasible")]


def test_retry_takes_the_failed_ones_only(bad):
    root = bad[0]
    (root.path / "mended").touch()
    root.suite("bad", root.path.joinpath("params/suites/bad.yaml").read_text() + "  \n")
    executed = len(root.ran())
    code, out, _ = root.call("retry", "bad", "--seed", "0,7")
    assert code == 0, out
    assert root.ran()[executed:] == ["robe-100-7-diverge"]


@pytest.mark.parametrize(
    ("outcome", "code", "oom_killed", "status"),
    [
        ({"status": "crashed"}, 0, True, "oom"),
        ({"status": "failed", "reason": "ValueError"}, 0, True, "failed"),
        (None, -9, True, "oom"),
        (None, -9, False, "crashed"),
        (None, -11, True, "crashed"),
        (None, errno.ENOSPC, False, "failed"),
    ],
)
def test_the_systems_own_kills_are_told_apart(tmp_path, outcome, code, oom_killed, status):
    (tmp_path / "log.txt").touch()
    if outcome:
        (tmp_path / "outcome.json").write_text(json.dumps(outcome))
    assert job._outcome(tmp_path, None, code, Limits(), oom_killed)["status"] == status


@pytest.mark.parametrize(("failures", "started", "calls"), [(2, 0, 3), (3, 0, 3), (2, 1, 1)])
def test_a_kernel_that_did_not_start_is_tried_again(failures, started, calls):
    cells, tried = execute._Cells(), []
    cells.started = started

    def action():
        tried.append(1)
        if len(tried) <= failures:
            raise RuntimeError("Kernel died before replying to kernel_info")

    with contextlib.suppress(RuntimeError):
        execute._with_retries(cells, action)
    assert len(tried) == calls


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk(root):
    disk = root.path / "results"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    try:
        root.suite("small", "grid: {method: robe, dataset: tiny, act: [big, ok]}\njobs: 1\n")
        code, _, err = root.call("run", "small")
        found = root.records("small")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert code == 1, err
    assert found["robe/tiny/r100-s0-actok"]["status"] == "done"
    assert found["robe/tiny/r100-s0-actbig"]["status"] == "failed"
    assert found["robe/tiny/r100-s0-actbig"]["reason"].startswith("the disk is full")
