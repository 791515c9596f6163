"""What is measured of TT-Rec: the arithmetic, the distributions and the counts; no test depends on a duration."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pocketrec.embeddings.tt_rec import CUT_VARIANCE
from pocketrec.papers import tt_rec
from pocketrec.speed import bench, contestants


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return tt_rec.measure(tmp_path_factory.mktemp("suite"), small=True)


def test_every_table_that_the_module_names_is_there_and_goes_through_parquet(measured, tmp_path):
    named = [line.split()[0] for line in tt_rec.__doc__.split("\n\n")[1].splitlines()]
    assert list(measured) == named
    for name, table in measured.items():
        table.to_parquet(tmp_path / name)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / name), table)


def test_the_whole_tables_alone_are_the_ceiling(measured):
    for _, rows in measured["sizes"].groupby(["model", "tables"]):
        ceiling = rows.loc[rows["rank"].isna(), "ratio"].item()
        ranked = rows.dropna(subset="rank").sort_values("rank")["ratio"]
        assert ranked.is_monotonic_decreasing and ranked.max() < ceiling


def kurtosis(factor, rank):
    """Excess kurtosis of an entry whose independent factors have kurtosis `factor`."""
    return 3 * (1 + (factor - 1) / rank) ** 2 + (factor - 3) * factor**2 / rank**2 - 3


@pytest.mark.parametrize(("init", "factor"), [("gaussian", 3.0), ("uniform", 1.8), ("scaled_gaussian", 1.085)])
@pytest.mark.parametrize("rank", [2, 16])
def test_fresh_entries_have_the_shape_that_their_factors_give(init, factor, rank):
    entries = tt_rec.fresh_entries(init, rank, rows=500_000, count=1 << 15)
    assert stats.kurtosis(entries) == pytest.approx(kurtosis(factor, rank), abs=0.15 + 0.15 * kurtosis(factor, rank))


def test_moments_say_how_much_too_wide_the_published_start_is(measured):
    widths = measured["moments"].set_index(["init", "rank"])["std_ratio"]
    for rank in (1, 8):
        assert widths["sampled_gaussian", rank] == pytest.approx(CUT_VARIANCE**1.5 * rank, rel=0.1)
        assert widths["scaled_gaussian", rank] == pytest.approx(1, rel=0.1)


def test_densities_hold_all_entries(measured):
    width = tt_rec.BINS[1] - tt_rec.BINS[0]
    held = measured["density"].groupby(["init", "rank"])["density"].sum() * width
    assert held.between(0.99, 1.0001).all()


def test_a_cache_answers_for_the_most_counted():
    counts, keys = np.array([5, 0, 9, 1]), np.array([[2, 2], [0, 3]])
    np.testing.assert_allclose(tt_rec._answered(counts, keys, np.array([1, 2, 4])), [0.5, 0.75, 1.0])


def test_a_cache_filled_while_training_is_empty_at_first_and_knows_only_what_was_read():
    never, always = np.arange(40).reshape(40, 1), np.zeros((40, 1), dtype=int)
    assert tt_rec._answered_while_training(never, 40, np.array([1])) == [0]
    assert tt_rec._answered_while_training(always, 40, np.array([1])) == [pytest.approx(0.95)]


def test_hit_rates_grow_with_the_cache_and_the_best_is_best(measured):
    rates = measured["hit_rates"]
    for column in ("best", "reached", "test"):
        assert rates[column].is_monotonic_increasing and rates[column].between(0, 1).all()
    assert (rates["best"] >= rates["reached"] - 1e-12).all() and rates["best"].iloc[-1] == 1


def test_steps_are_timed_in_turn_around_every_embedding(measured):
    steps = measured["steps"]
    assert (steps["ms"] > 0).all() and {"full", "MLPs only", "26 x nn.EmbeddingBag", "tt_rec"} == set(
        steps["embedding"]
    )
    rounds = steps.groupby(["batch", "round"]).size()
    assert (rounds == len(steps) / len(rounds)).all()
    cached = steps[steps["cache"] > 0]
    assert cached["hit_rate"].between(0.01, 1).all() and (cached["ratio"] > 1).all()
    assert set(measured["refills"]["cache"]) == set(cached["cache"])


def test_kernels_are_timed_with_repeated_ids_and_without(measured):
    kernels = measured["kernels"]
    assert set(kernels["route"]) >= {"pocketrec", "plain PyTorch", "plain PyTorch, unique ids"}
    distinct = kernels.groupby("ids")["distinct"].first()
    assert distinct["zipf"] < distinct["uniform"] <= 1


def test_what_is_not_on_this_machine_has_a_reason_and_a_command(measured):
    skipped = measured["skipped"].set_index("what")
    assert "GPU" in skipped.loc["kernel: FBTT-Embedding", "reason"]
    assert skipped["command"].str.contains("pocketrec measure").all()


def test_data_that_is_not_there_is_skipped(monkeypatch, tmp_path):
    monkeypatch.setattr(tt_rec.data.catalogue.paths, "DATA", tmp_path)
    table, skipped = tt_rec._hit_rates({"criteo-kaggle": {}})
    assert table.empty and skipped[0]["command"] == "pocketrec prepare criteo-kaggle"


def test_a_tensor_train_asked_for_unique_ids_gives_the_same():
    table = contestants.Tables([300], 16)  # smaller than the batch, so that ids repeat
    assert bench.wrong(contestants._train_of_unique_ids(table, 2), table) == ""
