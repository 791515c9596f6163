"""Two processes: the curve of one, scores of all rows, and an end with a reason when one of them fails."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import papermill
import psutil
import pytest
import torch

from pocketrec import embeddings, models
from pocketrec.distributed import Died, progress
from pocketrec.embeddings import METHODS
from pocketrec.errors import UserError
from pocketrec.training import evaluate, fit, predict, save

NEEDS_TORCHREC = pytest.mark.skipif(
    find_spec("torchrec") is None or find_spec("fbgemm_gpu") is None, reason="TorchRec is not installed"
)


SGD = {"table_optimizer": "sgd", "dense_optimizer": "sgd", "table_lr": 1.0, "dense_lr": 0.1}


def build(dataset, method="robe", ratio=4.0):
    embedding = embeddings.build(method, cardinalities=dataset.cardinalities, dim=16, ratio=ratio, seed=0)
    return models.DLRM(embedding, dataset.num_dense, [8], [8])


def train(dataset, nproc, method="robe", ratio=4.0, updates="autograd", **arguments):
    """Return the model, its history and the test probabilities; 3200 training rows in batches of 301: odd shares."""
    model = build(dataset, method, ratio)
    history = fit(model, dataset, batch_size=301, nproc=nproc, updates=updates, **arguments)
    return model, history, predict(model, dataset, "test")[0]


def assert_same(one, two):
    for name in ("steps", "samples", "best_step"):
        assert getattr(one[1], name) == getattr(two[1], name)
    for alone, together in zip(one[1].curve, two[1].curve, strict=True):
        for name in set(alone) - {"seconds"}:
            assert together[name] == pytest.approx(alone[name], rel=2e-4)
    torch.testing.assert_close(one[2], two[2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("robe", SGD | {"epochs": 2}),
        ("low_dim", {"keep": "last"}),  # rows, whose gradients are sparse
        ("tt_rec", {}),
    ],
)
def test_two_processes_learn_as_one(tiny, method, arguments):
    assert_same(*(train(tiny, nproc, method, **arguments) for nproc in (1, 2)))


def test_a_last_batch_smaller_than_the_processes(tiny):
    one, two = (train(tiny.thinned(302), nproc, evaluations=1) for nproc in (1, 2))
    assert one[1].steps == 2
    assert_same(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"full", "robe", "low_dim", "tt_rec", "cafe", "mgqe"}))
def test_every_method_learns_as_alone(tiny, method):
    """With SGD, which sees the size of a gradient: Adagrad sees its sign alone at first, which rounding can turn."""
    assert_same(*(train(tiny, nproc, method, keep="last", **SGD) for nproc in (1, 2)))


@NEEDS_TORCHREC
@pytest.mark.parametrize("table_optimizer", ["sgd", "adagrad"])
def test_the_full_table_in_parts_learns_as_the_whole(tiny, tmp_path, table_optimizer):
    arguments = {"method": "full", "ratio": 1, "table_optimizer": table_optimizer, "epochs": 2}
    one, two = (train(tiny, nproc, updates="fused", **arguments) for nproc in (1, 2))
    assert_same(one, two)
    weights = [trained[0].embedding.table.weight for trained in (one, two)]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
    assert not torch.equal(weights[1], build(tiny, "full", 1).embedding.table.weight)
    served = [trained[0].deploy() for trained in (one, two)]
    alone, together = (evaluate(model, tiny) for model in served)
    assert together[0]["validation"]["auc"] == pytest.approx(max(two[1].frame().validation_auc), rel=1e-6)
    assert together[0]["test"] == pytest.approx(alone[0]["test"], rel=2e-4)
    written = save(str(tmp_path), served[1], two[1], together[1])["file_bytes"]
    assert written == two[0].sizes(1)["inference_bytes"] == 4 * 16 * sum(tiny.cardinalities)


class Fails(models.DLRM):
    """Does what `act` says in the second process in the step `last`."""

    act, last = "raise", 3

    def forward(self, dense, ids):
        if self.training and torch.distributed.get_rank() == 1:
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps == self.last and self.act == "raise":
                raise ValueError("a bad step")
            if self.steps == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(dense, ids)


class Dies(Fails):
    """Is killed."""

    act = "die"


class DiesLate(Dies):
    """Is killed in the second epoch, some steps after the last evaluation."""

    last = 16


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [(Fails, ValueError, "a bad step"), (Dies, Died, "process 1 of 2 was ended by signal SIGKILL")],
)
def test_a_process_that_fails_ends_the_training(tiny, kind, error, message):
    embedding = build(tiny).embedding
    with pytest.raises(error, match=message):
        fit(kind(embedding, tiny.num_dense, [8], [8]), tiny, batch_size=64, updates="autograd", nproc=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("robe", {"schedule": "plateau"}),  # all gradients are averaged
        ("low_dim", {"table_optimizer": "sgd"}),  # those of rows are gathered
    ],
)
def test_a_killed_training_goes_on_to_the_same_numbers(tiny, tmp_path, method, arguments):
    arguments |= {"batch_size": 301, "epochs": 2, "evaluations": 2, "updates": "autograd", "nproc": 2}
    saving = {"checkpoint": str(tmp_path / "state"), "checkpoint_minutes": 1e-9}
    whole = fit(alone := build(tiny, method), tiny, **arguments)
    with pytest.raises(Died, match="SIGKILL"):
        fit(DiesLate(build(tiny, method).embedding, tiny.num_dense, [8], [8]), tiny, **arguments, **saving)
    history = fit(again := build(tiny, method), tiny, **arguments, **saving)
    assert history.resumed == 1 and history.samples == whole.samples and history.best_step == whole.best_step
    pd.testing.assert_frame_equal(
        history.frame().drop(columns="seconds"), whole.frame().drop(columns="seconds"), check_exact=True
    )
    assert evaluate(again, tiny)[0] == evaluate(alone, tiny)[0]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in alone.state_dict().items())


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tiny, tmp_path):
    program = """
import sys
from pocketrec import data, embeddings, models, training
rows = data.load("planted", rows=4000, scale=0.0001)
embedding = embeddings.build("robe", cardinalities=rows.cardinalities, dim=16, ratio=4, seed=0)
model = models.DLRM(embedding, rows.num_dense, [8], [8])
saving = {"checkpoint": sys.argv[1], "checkpoint_minutes": 1e-9}
training.fit(model, rows, epochs=1e6, evaluations=1, updates="autograd", nproc=2, **saving)
"""
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "state")]) as process:
        while not (tmp_path / "state").exists():
            assert process.poll() is None
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(family) >= 3, "a server and two processes"
    assert not psutil.wait_procs(family, timeout=300)[1]


@pytest.mark.slow
def test_divergence_is_told_as_such(tiny):
    from pocketrec.training import Diverged

    model = build(tiny)
    with torch.no_grad():
        model.top[0].weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match="nan before step"):
        fit(model, tiny, batch_size=512, updates="autograd", nproc=2)


def test_a_method_that_follows_the_rows_it_reads_is_refused(tiny):
    with pytest.raises(UserError, match="nproc: 2: cafe as it is configured learns its structure"):
        fit(build(tiny, "cafe"), tiny, batch_size=256, updates="autograd", nproc=2)


def test_what_cannot_be_trained_so_is_refused_at_once(tiny, monkeypatch):
    with pytest.raises(UserError, match="nproc: 2: gradients travel between processes: take updates: autograd"):
        fit(build(tiny), tiny, nproc=2)
    with pytest.raises(UserError, match="set device: cuda, not cuda:0"):
        fit(build(tiny), tiny, nproc=2, updates="autograd", device="cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="has 1 GPUs; take as many processes or fewer"):
        fit(build(tiny), tiny, nproc=2, updates="autograd", device="cuda")
    monkeypatch.setattr("pocketrec.distributed.find_spec", lambda name: None)
    with pytest.raises(UserError, match="TorchRec spreads the full table, and is not installed: pip install"):
        fit(build(tiny, "full", 1), tiny, nproc=2)


def test_only_the_first_process_shows_its_progress(monkeypatch):
    monkeypatch.setattr("pocketrec.distributed.rank", lambda: 1)
    assert progress(total=3).disable


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method", [{}, pytest.param({"method": "full", "ratio": 1.0}, marks=NEEDS_TORCHREC)], ids=["robe", "full"]
)
def test_a_notebook_starts_processes(tmp_path, method):
    template = Path(__file__).parents[1] / "notebooks/train.ipynb"
    few = {"dataset_options": {"rows": 4000, "scale": 0.0001}, "nproc": 2, "updates": "autograd"} | method
    executed = papermill.execute_notebook(
        str(template), str(tmp_path / "out.ipynb"), few, cwd=tmp_path, progress_bar=False
    )
    printed = [output["text"] for cell in executed.cells for output in cell.get("outputs", []) if "text" in output]
    assert sum(text.count("training: 100%") for text in printed) <= 1
    assert any("image/png" in o.get("data", {}) for cell in executed.cells for o in cell.get("outputs", []))
