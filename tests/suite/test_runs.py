"""Suites over time: two at once, stopped, killed, changed, and the timed runs after the others."""

import json
import os
import signal
import threading
import time

import psutil
import pytest

from pocketrec.suite import process
from pocketrec.suite.process import Busy, is_locked, locked

SUITE = "grid: {method: robe, dataset: tiny, seed: [0, 1, 2]}\njobs: 2\n"


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def statuses(root, suite):
    return {name.rpartition("/")[2]: found["status"] for name, found in root.records(suite).items()}


def test_two_at_once_do_every_run_once(root):
    root.suite("twice", SUITE)
    both = [root.start("run", "twice") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted(root.ran()) == [f"robe-100-{seed}-ok" for seed in range(3)]
    assert set(statuses(root, "twice").values()) == {"done"}
    assert "nothing to do" in root.call("run", "twice")[1]
    assert len(root.ran()) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_and_continued(root, number):
    root.suite("stop", "grid: {method: robe, dataset: tiny, act: [sleep, ok]}\njobs: 1\n")
    process = root.start("run", "stop")
    wait_until(lambda: root.ran() == ["robe-100-0-sleep"])
    kernel = psutil.Process(root.kernels()[0])
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not kernel.is_running()
    assert statuses(root, "stop") == {"r100-s0-actsleep": "interrupted"}
    (root.path / "mended").touch()
    assert root.call("run", "stop")[0] == 0
    assert set(statuses(root, "stop").values()) == {"done"}


@pytest.mark.slow
def test_workers_end_with_a_killed_runner_and_the_next_goes_on(root):
    root.suite("killed", "grid: {method: robe, dataset: tiny, act: sleep}\n")
    process = root.start("run", "killed")
    wait_until(lambda: root.ran())
    kernel = psutil.Process(root.kernels()[0])
    process.kill()
    process.communicate()
    assert statuses(root, "killed") == {}
    (root.path / "mended").touch()
    assert root.call("run", "killed")[0] == 0
    assert not kernel.is_running()
    assert statuses(root, "killed") == {"r100-s0-actsleep": "done"}


@pytest.mark.slow
def test_a_locked_run_is_shown_as_running(root):
    root.suite("watch", "grid: {method: robe, dataset: tiny, act: sleep}\n")
    process = root.start("run", "watch")
    wait_until(lambda: root.ran())
    out = root.call("plan", "watch")[1]
    process.terminate()
    process.communicate(timeout=30)
    assert "running" in out


def test_timed_runs_once_a_configuration_after_the_others(root):
    root.suite("speed", "timed: latency\nfixed: {repeats: 3}\n" + SUITE.replace("[0, 1, 2]", "[0, 1]"))
    assert root.call("run", "speed")[0] == 0
    found = root.records("speed")
    timed = found.pop("robe/tiny/r100-latency")
    assert timed["kind"] == "timed" and "seed" not in timed
    assert timed["parameters"] == {"source": "../r100-s0", "repeats": 3, "threads": 1}
    assert timed["speed"] == [{"part": "model", "batch": 1, "p50_ms": 0.75}]
    assert all(timed["started"] > quality["started"] for quality in found.values())


@pytest.mark.slow
def test_a_timed_run_waits_for_its_source(root):
    root.suite("wait", "timed: latency\ngrid: {method: robe, dataset: tiny, act: raise}\n")
    code, out, _ = root.call("run", "wait")
    assert code == 1
    assert "r100-latency-actraise: left out" in out
    (root.path / "mended").touch()
    assert root.call("retry", "wait")[0] == 0
    assert statuses(root, "wait") == {"r100-s0-actraise": "done", "r100-latency-actraise": "done"}


def test_a_changed_suite_keeps_what_was_done_before(root):
    root.suite("change", SUITE.replace("[0, 1, 2]", "0"))
    assert root.call("run", "change")[0] == 0
    before = root.records("change")["robe/tiny/r100-s0"]
    root.suite("change", "fixed: {epochs: 3}\n" + SUITE.replace("[0, 1, 2]", "0"))
    assert "stale" in root.call("plan", "change")[1]
    assert root.call("run", "change")[0] == 0
    after = root.records("change")["robe/tiny/r100-s0"]
    assert before["parameters"]["epochs"] == 2 and after["parameters"]["epochs"] == 3
    kept = root.path / f"results/change/replaced/robe/tiny/r100-s0-{before['key'][:8]}"
    assert {"record.json", "run.ipynb", "metrics.json"} <= {file.name for file in kept.iterdir()}


def record_of(root, suite, status="done"):
    """Write a record of the run `robe/tiny/r100-s0`, under a key of other settings, and return its file."""
    found = {"schema": 1, "key": "k" * 64, "status": status, "kind": "quality", "method": "robe", "dataset": "tiny"}
    name = f"results/{suite}/runs/robe/tiny/r100-s0/record.json"
    return root.write(name, json.dumps(found | {"run": "robe/tiny/r100-s0", "seconds": 1.0}))


def test_without_its_data_a_run_keeps_the_result_it_has(root):
    root.suite("away", "grid: {method: robe, dataset: tiny}\n")
    root.write("params/datasets/tiny.yaml", "missing: true\n")
    file = record_of(root, "away")
    before = file.read_text()
    code, out, err = root.call("run", "away")
    assert code == 1 and "raw.csv is missing" in out + err and "its result stays" in out + err
    assert file.read_text() == before and not (root.path / "results/away/replaced").exists()


def test_the_folder_of_a_record_that_cannot_be_read_is_kept(root):
    root.suite("torn", "grid: {method: robe, dataset: tiny}\n")
    record_of(root, "torn", status="unknown").with_name("my_notes.txt").write_text("mine")
    assert root.call("run", "torn")[0] == 0
    assert statuses(root, "torn") == {"r100-s0": "done"}
    assert (root.path / "results/torn/replaced/robe/tiny/r100-s0-unreadable/my_notes.txt").exists()


def test_a_record_that_cannot_be_written_is_said(root):
    root.suite("blocked", "grid: {method: robe, dataset: [tiny, absent]}\n")
    root.write("results/blocked/runs/robe/tiny", "a file where the folder should be")
    code, out, err = root.call("run", "blocked")
    assert code == 1, err
    assert "robe/tiny/r100-s0: no record could be written" in out
    assert statuses(root, "blocked") == {"r100-s0": "failed"}, "the other run goes on"


def test_timed_runs_take_turns(tmp_path):
    lock = tmp_path / "lock"
    with locked(lock, shared=True), locked(lock, shared=True):
        with pytest.raises(Busy), locked(lock):
            pass
        with pytest.raises(Busy), locked(lock, give_up=lambda: True):
            pass
    with locked(lock) as handle:
        assert is_locked(lock)
        child = os.dup(handle)
    assert is_locked(lock), "a worker that was given the lock holds it on"
    os.close(child)
    assert not is_locked(lock)


def test_who_wants_the_machine_alone_is_not_passed_by_others(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "MACHINE_LOCK", tmp_path / "lock")
    monkeypatch.setattr(process, "MACHINE_QUEUE", tmp_path / "queue")
    waits, alone = threading.Event(), threading.Event()

    def timed():
        with process.machine(waits=waits.set):
            alone.set()

    with process.machine(shared=True), process.machine(shared=True):
        thread = threading.Thread(target=timed)
        thread.start()
        assert waits.wait(10)
        with pytest.raises(Busy), process.machine(shared=True, give_up=lambda: True):
            pass
        assert not alone.is_set()
    thread.join(10)
    assert alone.is_set()


def test_a_run_on_a_gpu_starts_from_nothing_and_ends_alike(root):
    root.suite("cold", 'grid: {method: robe, dataset: tiny}\nfixed: {device: "cuda:0"}\n')
    assert root.call("run", "cold")[0] == 0
    assert [found["status"] for found in root.records("cold").values()] == ["done"]
