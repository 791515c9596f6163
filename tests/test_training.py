"""The loop: learns, repeats itself exactly, keeps what validation chose, and says when it diverged."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from pocketrec import embeddings, models, training
from pocketrec.optim import optimizers
from pocketrec.training import Diverged, evaluate, fit, predict


def build(dataset, method="robe", ratio=4, seed=0):
    embedding = embeddings.build(method, cardinalities=dataset.cardinalities, dim=16, ratio=ratio, seed=seed)
    return models.DLRM(embedding, dataset.num_dense, [8], [8], seed=seed)


@pytest.mark.parametrize(
    ("table_optimizer", "updates"),
    [("adagrad", "fused"), ("sgd", "fused"), ("adam", "autograd"), ("adamw", "autograd")],
)
@pytest.mark.parametrize(("method", "ratio"), [("full", 1), ("robe", 4)])
def test_training_lowers_the_loss(tiny, method, ratio, table_optimizer, updates):
    model = build(tiny, method, ratio)
    history = fit(model, tiny, batch_size=64, epochs=2, table_optimizer=table_optimizer, updates=updates)
    losses = history.frame()["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    assert history.steps == 2 * math.ceil(tiny.rows("train") / 64)
    assert history.samples == 2 * tiny.rows("train")


def test_same_seed_and_one_thread_same_numbers(tiny):
    runs = []
    for _ in range(2):
        model = build(tiny)
        history = fit(model, tiny, batch_size=128)
        metrics, probabilities = evaluate(model, tiny)
        runs.append((history.frame().drop(columns="seconds"), metrics, probabilities))
    pd.testing.assert_frame_equal(runs[0][0], runs[1][0], check_exact=True)
    assert runs[0][1] == runs[1][1] and torch.equal(runs[0][2], runs[1][2])


def test_another_seed_other_numbers(tiny):
    curves = [fit(build(tiny, seed=seed), tiny, batch_size=128, seed=seed).curve for seed in (0, 1)]
    assert curves[0][-1]["validation_auc"] != curves[1][-1]["validation_auc"]


def test_the_best_weights_on_validation_are_kept(tiny):
    model = build(tiny, "full", 1)
    history = fit(model, tiny, batch_size=64, epochs=6, table_lr=0.3)  # soon overfits
    best = history.frame().set_index("step")["validation_auc"]
    metrics, _ = evaluate(model, tiny)
    assert history.best_step == best.idxmax() < history.steps
    assert metrics["validation"]["auc"] == pytest.approx(best.max(), abs=1e-9)
    last = build(tiny, "full", 1)
    history = fit(last, tiny, batch_size=64, epochs=6, table_lr=0.3, keep="last")
    assert evaluate(last, tiny)[0]["validation"]["auc"] == pytest.approx(best.iloc[-1], abs=1e-9)
    assert history.best_step == history.steps


def test_the_test_rows_are_not_read_in_training(tiny, monkeypatch):
    asked = []
    batches = type(tiny).batches
    monkeypatch.setattr(
        type(tiny), "batches", lambda self, split, *a, **k: asked.append(split) or batches(self, split, *a, **k)
    )
    model = build(tiny)
    fit(model, tiny, batch_size=256)
    assert set(asked) == {"train", "validation"}
    evaluate(model, tiny)
    assert asked.count("test") == 1


def test_no_prediction_beats_the_teacher(tiny):
    metrics, probabilities = evaluate(build(tiny), tiny)
    assert metrics["bayes"]["log_loss"] < metrics["test"]["log_loss"]
    assert metrics["bayes"]["auc"] > metrics["test"]["auc"]
    assert sum(part["rows"] for part in metrics["slices"].values()) == len(probabilities) == tiny.rows("test")


def test_evaluations_are_evenly_spaced(tiny):
    history = fit(build(tiny), tiny, batch_size=100, epochs=1.5, evaluations=5)  # 32 steps an epoch
    assert history.frame()["step"].tolist() == [7, 13, 20, 26, 32, 39, 45, 48]


def test_fewer_rows_and_part_of_an_epoch(tiny):
    history = fit(build(tiny), tiny.thinned(1000), batch_size=100, epochs=1.5)
    assert (history.steps, history.samples) == (15, 1500)


@pytest.mark.parametrize(("epochs", "steps"), [(1.04, 10), (2.04, 20), (0.01, 1), (1.26, 13)])
def test_no_step_more_than_the_epochs_have(tiny, epochs, steps):
    assert fit(build(tiny), tiny.thinned(1000), batch_size=100, epochs=epochs).steps == steps


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_finite_is_divergence(tiny):
    model = build(tiny)
    with torch.no_grad():
        model.top[0].weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match="nan before step"):
        fit(model, tiny, batch_size=256)


@pytest.mark.filterwarnings("ignore")
def test_weights_that_break_in_the_last_step_are_divergence(tiny):
    with pytest.raises(Diverged, match="validation rows is not a number"):
        fit(
            build(tiny),
            tiny,
            batch_size=10_000,
            epochs=1,
            table_optimizer="sgd",
            table_lr=1e38,
            dense_optimizer="sgd",
            dense_lr=1e38,
        )


def test_wrong_choices_are_refused(tiny):
    with pytest.raises(ValueError, match="'best' or 'last', got 'first'"):
        fit(build(tiny), tiny, keep="first")
    with pytest.raises(ValueError, match="adagrad, sgd, adam, adamw, got 'rmsprop'"):
        fit(build(tiny), tiny, table_optimizer="rmsprop")
    with pytest.raises(ValueError, match="adam, sgd, got 'adagrad'"):
        fit(build(tiny), tiny, dense_optimizer="adagrad")
    with pytest.raises(ValueError, match="needs updates 'autograd'"):
        fit(build(tiny), tiny, table_optimizer="adamw")
    with pytest.raises(ValueError, match="'constant' or 'plateau', got 'cosine'"):
        fit(build(tiny), tiny, schedule="cosine")


def test_a_target_ends_the_training(tiny):
    curve = fit(build(tiny), tiny, batch_size=100, epochs=2).frame()
    target = curve["validation_auc"].iloc[:7].max()
    ended = fit(build(tiny), tiny, batch_size=100, epochs=2, target_auc=target)
    assert ended.steps == curve["step"][(curve["validation_auc"] >= target).idxmax()]
    assert ended.best_step == ended.steps


@pytest.mark.parametrize(("dense_optimizer", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_the_mlps_have_their_own_optimizer(tiny, dense_optimizer, kind):
    tables, dense = optimizers(
        build(tiny), table_optimizer="sgd", table_lr=1, dense_optimizer=dense_optimizer, dense_lr=2
    )
    assert type(dense) is kind and dense.param_groups[0]["lr"] == 2 and tables.param_groups[0]["lr"] == 1


@pytest.mark.parametrize(("schedule", "factor"), [("constant", 1), ("plateau", 0.1)])
def test_a_plateau_lowers_the_learning_rates(tiny, monkeypatch, schedule, factor):
    made = []
    monkeypatch.setattr(training, "optimizers", lambda *a, **k: made.extend(optimizers(*a, **k)) or made)
    rates = {"table_lr": 1e-12, "dense_lr": 1e-12}  # nothing moves, so nothing gets better
    fit(build(tiny), tiny, batch_size=100, evaluations=13, schedule=schedule, **rates)
    assert [optim.param_groups[0]["lr"] for optim in made] == pytest.approx([1e-12 * factor] * 2)


def test_what_is_kept_gives_the_same_predictions(tiny, tmp_path):
    model = build(tiny)
    history = fit(model, tiny, batch_size=256)
    _, probabilities = evaluate(model, tiny)
    kept = training.save(str(tmp_path), model.deploy(), history, probabilities)
    assert kept == {"file_bytes": model.embedding.storage().inference_bytes}
    np.testing.assert_array_equal(np.load(tmp_path / "predictions.npy"), probabilities.float())
    torch.testing.assert_close(predict(models.load(tmp_path), tiny, "test")[0], probabilities, rtol=0, atol=0)
    assert len(pd.read_parquet(tmp_path / "curve.parquet")) == len(history.curve)
    assert training.save("", model, history, probabilities) == {}


def test_a_deployed_model_leaves_the_trained_one_as_it_was(tiny):
    model = build(tiny)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    served = model.deploy("int4")
    exact, coarse = (predict(m, tiny, "test")[0] for m in (model, served))
    assert not torch.equal(exact, coarse) and (exact - coarse).abs().max() < 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in served.parameters())


def test_lower_precision_gives_the_same_scores_to_its_rounding(tiny):
    scores = []
    for precision in ("float32", "bf16"):
        model = build(tiny)
        fit(model, tiny, batch_size=256, precision=precision)
        assert all(p.dtype is torch.float32 for p in model.parameters())
        scores.append(evaluate(model.deploy(), tiny, test=False)[0]["validation"]["auc"])
    assert scores[0] == pytest.approx(scores[1], abs=0.01) and scores[0] != scores[1]
    with pytest.raises(ValueError, match="precision must be"):
        fit(model, tiny, precision="bf17")


def test_updates_in_place_and_through_autograd_agree(tiny):
    losses = []
    for updates in ("fused", "autograd"):
        history = fit(build(tiny), tiny, batch_size=256, updates=updates, keep="last")
        losses.append([point["train_loss"] for point in history.curve])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(ValueError, match="updates must be"):
        fit(build(tiny), tiny, updates="fuse")


@pytest.mark.parametrize(
    ("method", "ratio", "numbers"),
    [("full", 1, {"sgd": 0, "adagrad": 1, "adam": 2 * 16}), ("robe", 4, {"sgd": 0, "adagrad": 4, "adam": 2 * 4})],
)
def test_the_bytes_of_the_optimizer_are_those_of_what_trained(tiny, method, ratio, numbers):
    for optimizer, of_a_row in numbers.items():
        model, updates = build(tiny, method, ratio), "autograd" if optimizer == "adam" else "fused"
        history = fit(model, tiny.thinned(200), batch_size=100, table_optimizer=optimizer, updates=updates)
        assert history.optimizer_bytes == pytest.approx(4 * of_a_row * sum(tiny.cardinalities), abs=16)


def test_pruned_numbers_are_not_moved_again(tiny):
    with pytest.raises(ValueError, match="pruning: adam would move what was pruned"):
        fit(build(tiny, "pruning"), tiny, table_optimizer="adam", updates="autograd")


def test_scores_are_those_of_the_logits(tiny):
    model = build(tiny)
    with torch.no_grad():
        model.top[-2].bias += 30  # sigmoid in float32 would be 1
    probabilities, labels = predict(model, tiny, "test")
    logits = torch.cat([model(batch.dense, batch.ids) for batch in tiny.batches("test", 1000)]).double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.double())
    assert training.scores(probabilities, labels)["log_loss"] == pytest.approx(expected.item(), rel=1e-6)
