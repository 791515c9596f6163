"""Two processes: the curve of one, scores of all rows, and an end with a reason when one of them fails."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import papermill
import pytest
import torch

from pocketrec import embeddings, models
from pocketrec.distributed import Died, progress
from pocketrec.embeddings import METHODS
from pocketrec.errors import UserError
from pocketrec.training import fit, predict

NEEDS_TORCHREC = pytest.mark.skipif(
    find_spec("torchrec") is None or find_spec("fbgemm_gpu") is None, reason="TorchRec is not installed"
)


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
        ("robe", {"table_optimizer": "sgd", "dense_optimizer": "sgd", "dense_lr": 0.05, "epochs": 2}),
        ("low_dim", {"keep": "last"}),  # rows, whose gradients are sparse
        ("tt_rec", {}),
    ],
)
def test_two_processes_learn_as_one(tiny, method, arguments):
    assert_same(*(train(tiny, nproc, method, **arguments) for nproc in (1, 2)))


def test_a_last_batch_smaller_than_the_processes(tiny):
    one, two = (train(tiny, nproc, train_rows=302, evaluations=1) for nproc in (1, 2))
    assert one[1].steps == 2
    assert_same(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"full", "robe", "low_dim", "tt_rec", "cafe", "mgqe"}))
def test_every_method_learns_as_alone(tiny, method):
    assert_same(*(train(tiny, nproc, method, keep="last") for nproc in (1, 2)))


@NEEDS_TORCHREC
@pytest.mark.parametrize("table_optimizer", ["sgd", "adagrad"])
def test_the_full_table_in_parts_learns_as_the_whole(tiny, table_optimizer):
    arguments = {"method": "full", "ratio": 1, "table_optimizer": table_optimizer, "epochs": 2}
    one, two = (train(tiny, nproc, updates="fused", **arguments) for nproc in (1, 2))
    assert_same(one, two)
    weights = [trained[0].embedding.table.weight for trained in (one, two)]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
    assert not torch.equal(weights[1], build(tiny, "full", 1).embedding.table.weight)


class Fails(models.DLRM):
    """Does what `act` says in the second process when it has trained two steps."""

    act = "raise"

    def forward(self, dense, ids):
        if self.training and torch.distributed.get_rank() == 1:
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps == 3 and self.act == "raise":
                raise ValueError("a bad step")
            if self.steps == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(dense, ids)


class Dies(Fails):
    """Is killed."""

    act = "die"


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [(Fails, ValueError, "a bad step"), (Dies, Died, "process 1 of 2 was ended by signal SIGKILL")],
)
def test_a_process_that_fails_ends_the_training(tiny, kind, error, message):
    embedding = build(tiny).embedding
    with pytest.raises(error, match=message):
        fit(kind(embedding, tiny.num_dense, [8], [8]), tiny, batch_size=64, updates="autograd", nproc=2)


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
    with pytest.raises(UserError, match="take device: cuda, not cuda:0"):
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
def test_a_notebook_starts_processes(tmp_path):
    template = Path(__file__).parents[1] / "notebooks/train.ipynb"
    few = {"dataset_options": {"rows": 4000, "scale": 0.0001}, "nproc": 2, "updates": "autograd"}
    executed = papermill.execute_notebook(
        str(template), str(tmp_path / "out.ipynb"), few, cwd=tmp_path, progress_bar=False
    )
    printed = [output["text"] for cell in executed.cells for output in cell.get("outputs", []) if "text" in output]
    assert sum(text.count("training: 100%") for text in printed) <= 1
    assert any("image/png" in o.get("data", {}) for cell in executed.cells for o in cell.get("outputs", []))
