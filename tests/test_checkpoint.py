"""A training that was interrupted goes on from its checkpoint to the same numbers, bit for bit."""

import json
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from pocketrec import embeddings, models, training
from pocketrec.checkpoint import Checkpoint
from pocketrec.errors import UserError
from pocketrec.training import fit, predict

# methods that change more than weights while they train, with knobs that switch it on, and a buffer that must move
ADAPTING = [
    ("cafe", {}, "hot_ids"),
    ("cce", {"clusterings": 3}, "map"),
    ("mgqe", {"groups": 4, "bits": 4, "tail_bits": 2}, "head_ids"),
    ("pruning", {"threshold": "learned"}, "factor"),
    ("pruning", {"threshold": "magnitude"}, ""),  # has no other state than its zeros
    ("tt_rec", {"tables": 3, "cache": 0.1}, "cached_ids"),
]
OTHERS = [(method, {}, "") for method in embeddings.available() if method not in [m for m, *_ in ADAPTING]]
TRAINING = {"batch_size": 128, "epochs": 2, "evaluations": 3}  # 25 steps an epoch
ALWAYS = 1e-9  # minutes


class Crash(Exception):
    """In place of a power cut."""


def build(dataset, method="robe", seed=0, **knobs):
    ratio = 1 if method == "full" else 3
    embedding = embeddings.build(method, cardinalities=dataset.cardinalities, dim=16, ratio=ratio, seed=seed, **knobs)
    return models.DLRM(embedding, dataset.num_dense, [8], [8], seed=seed)


def crash_after(monkeypatch, steps):
    """Let the training step after that many fail, once."""
    taken, train_step = [], training.train_step

    def step(*arguments):
        taken.append(1)
        if len(taken) == steps + 1:
            raise Crash
        return train_step(*arguments)

    monkeypatch.setattr(training, "train_step", step)


def outcome(model, dataset, history):
    curve = history.frame().drop(columns="seconds")
    return curve, history.best_step, predict(model, dataset, "test")[0], model.state_dict()


def assert_same(one, other):
    pd.testing.assert_frame_equal(one[0], other[0], check_exact=True)
    assert one[1] == other[1] and torch.equal(one[2], other[2])
    assert one[3].keys() == other[3].keys()
    assert all(torch.equal(value, other[3][name]) for name, value in one[3].items())


def interrupted(monkeypatch, tmp_path, dataset, steps, build_model, **arguments):
    """Train with a crash after some steps, and again in a new model; return the outcome."""
    saving = {"checkpoint": str(tmp_path / "state"), "checkpoint_minutes": ALWAYS}
    with monkeypatch.context() as patch:
        crash_after(patch, steps)
        with pytest.raises(Crash):
            fit(build_model(), dataset, **arguments, **saving)
    model = build_model()
    history = fit(model, dataset, **arguments, **saving)
    assert history.resumed == 1
    return outcome(model, dataset, history)


@pytest.mark.parametrize(("method", "knobs", "moves"), ADAPTING + OTHERS, ids=str)
def test_every_method_goes_on_as_if_nothing_had_happened(tiny, tmp_path, monkeypatch, method, knobs, moves):
    arguments = TRAINING | {"table_lr": 0.1, "keep": "last"}
    model = build(tiny, method, **knobs)
    before = model.embedding.state_dict()[moves].clone() if moves else None
    whole = outcome(model, tiny, fit(model, tiny, **arguments))
    assert not moves or not torch.equal(model.embedding.state_dict()[moves], before)
    assert_same(whole, interrupted(monkeypatch, tmp_path, tiny, 37, lambda: build(tiny, method, **knobs), **arguments))


@pytest.mark.parametrize(
    ("steps", "arguments"),
    [
        (1, {"table_optimizer": "sgd"}),
        (25, {"table_optimizer": "adamw", "updates": "autograd"}),  # between two epochs
        (34, {"updates": "autograd"}),
        (30, {"schedule": "plateau", "table_lr": 1e-12, "dense_lr": 1e-12, "evaluations": 9}),
        (90, {"table_lr": 0.3, "epochs": 4}),  # overfits: the best weights are those of before the crash
        (35, {"epochs": 1.5}),
    ],
    ids=str,
)
def test_whatever_the_training_is_like(tiny, tmp_path, monkeypatch, steps, arguments):
    arguments = TRAINING | arguments
    model = build(tiny, "full")
    whole = outcome(model, tiny, fit(model, tiny, **arguments))
    assert_same(whole, interrupted(monkeypatch, tmp_path, tiny, steps, lambda: build(tiny, "full"), **arguments))


def test_a_lower_learning_rate_is_gone_on_with(tiny, tmp_path, monkeypatch):
    made, optimizers = [], training.optimizers
    monkeypatch.setattr(training, "optimizers", lambda *a, **k: made.append(optimizers(*a, **k)) or made[-1])
    arguments = TRAINING | {"schedule": "plateau", "table_lr": 1e-12, "dense_lr": 1e-12, "evaluations": 9}
    interrupted(monkeypatch, tmp_path, tiny, 40, lambda: build(tiny), **arguments)  # lowered at the 13th evaluation
    assert [optim.param_groups[0]["lr"] for optim in made[1]] == pytest.approx([1e-13] * 2)


def test_only_the_rows_that_are_left_are_read(tiny, tmp_path, monkeypatch):
    read = []
    batches = type(tiny).batches
    monkeypatch.setattr(
        type(tiny), "batches", lambda self, split, *a, **k: read.append((split, k)) or batches(self, split, *a, **k)
    )
    interrupted(monkeypatch, tmp_path, tiny, 37, lambda: build(tiny), **TRAINING)
    trained = [(k["seed"], k["skip"]) for split, k in read if split == "train"]
    assert trained == [(0, 0), (1, 0), (1, 12)]


def test_nothing_is_saved_unless_asked_for(tiny, tmp_path):
    fit(build(tiny), tiny, batch_size=256, checkpoint=str(tmp_path / "state"))
    fit(build(tiny), tiny, batch_size=256, checkpoint=str(tmp_path / "state"), checkpoint_minutes=60)
    assert not list(tmp_path.iterdir())


def test_a_crash_while_saving_leaves_the_state_before(tiny, tmp_path, monkeypatch):
    saving = {"checkpoint": str(tmp_path / "state"), "checkpoint_minutes": ALWAYS}
    whole = fit(model := build(tiny), tiny, **TRAINING)
    saved = []

    def half(tensors, path, metadata):
        saved.append(path)
        if len(saved) < 30:
            return save_file(tensors, path, metadata=metadata)
        path.write_bytes(b"half")
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("pocketrec.checkpoint.save_file", half)
        with pytest.raises(Crash):
            fit(build(tiny), tiny, **TRAINING, **saving)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    history = fit(again := build(tiny), tiny, **TRAINING, **saving)
    assert history.resumed == 1 and history.samples == whole.samples
    assert_same(outcome(model, tiny, whole), outcome(again, tiny, history))


@pytest.fixture
def saved(tiny, tmp_path, monkeypatch):
    """A checkpoint of a training of 50 steps, at its 3rd."""
    path = tmp_path / "state"
    with monkeypatch.context() as patch:
        crash_after(patch, 3)
        with pytest.raises(Crash):
            fit(build(tiny), tiny, **TRAINING, checkpoint=str(path), checkpoint_minutes=ALWAYS)
    return path


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"batch_size": 64}, "batch_size 128 there, 64 here"),
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"table_lr": 0.1, "keep": "last"}, "keep 'best' there, 'last' here; table_lr 0.05 there, 0.1 here"),
    ],
    ids=str,
)
def test_the_checkpoint_of_another_training_is_refused(tiny, saved, change, difference):
    with pytest.raises(UserError) as error:
        fit(build(tiny), tiny, **TRAINING | change, checkpoint=str(saved))
    message = f"{saved}: the checkpoint of another training ({difference}); delete it to start anew, or name another"
    assert str(error.value).startswith(message)


def test_the_checkpoint_of_another_model_is_refused(tiny, saved):
    with pytest.raises(UserError, match="embedding .*'robe'.* there, .*'hashing'.* here.*delete it"):
        fit(build(tiny, "hashing"), tiny, **TRAINING, checkpoint=str(saved))


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_a_truncated_checkpoint_is_refused(tiny, saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(UserError, match=f"{saved}: cannot be read as a checkpoint .*; delete it to start anew"):
        fit(build(tiny), tiny, **TRAINING, checkpoint=str(saved))


def test_another_file_is_refused(tiny, tmp_path):
    path = tmp_path / "embedding.safetensors"
    embeddings.save(build(tiny).embedding.deploy(), path)
    with pytest.raises(UserError, match=f"{path}: not a checkpoint of a training; delete it"):
        fit(build(tiny), tiny, **TRAINING, checkpoint=str(path))


def test_any_nest_of_tensors_and_numbers_comes_back(tmp_path):
    file = Checkpoint(str(tmp_path / "deep/state"), 1, {"a": (1, 2)})
    state = {"x": [torch.arange(3), {"y": float("inf")}], 7: torch.tensor(True), "none": None, "e": torch.empty(0, 4)}
    file.save(state)
    found = file.load()
    assert found["x"][0].tolist() == [0, 1, 2] and found["x"][1] == {"y": float("inf")}
    assert found[7].dtype == torch.bool and found["none"] is None and found["e"].shape == (0, 4)
    assert json.dumps(file.about) == '{"a": [1, 2]}'
    assert Checkpoint("", 1, {}).load() is None


def test_it_is_due_after_its_minutes(tmp_path, monkeypatch):
    now = time.monotonic()
    file = Checkpoint(str(tmp_path / "state"), 10, {})
    monkeypatch.setattr(time, "monotonic", lambda: now + 599)
    assert not file.due
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert file.due and not Checkpoint("", 0.0, {}).due
    file.save({})
    assert not file.due
