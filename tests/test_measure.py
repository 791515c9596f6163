"""What is timed is what is said; no test depends on a duration."""

import pandas as pd
import torch

from pocketrec import embeddings, measure, models


def test_rivals_take_turns_and_every_sample_is_kept():
    order = []
    samples = measure.interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=20)
    assert order == ["a", "b"] * 22 and all(len(times) == 20 and (times >= 0).all() for times in samples.values())


def test_inference_speed_of_a_model(tiny):
    embedding = embeddings.build("robe", cardinalities=tiny.cardinalities, dim=16, ratio=4)
    model = models.DLRM(embedding, tiny.num_dense, [8], [8])
    modes = set()
    model.register_forward_pre_hook(lambda *_: modes.add((torch.is_inference_mode_enabled(), model.training)))
    speed = measure.inference_speed(model, tiny, [1, 64], repeats=10)
    assert modes == {(True, False)}
    assert sorted(zip(speed.part, speed.batch, strict=True)) == [
        ("lookup", 1),
        ("lookup", 64),
        ("model", 1),
        ("model", 64),
    ]
    assert (speed.p50_ms <= speed.p95_ms).all() and (speed.p95_ms <= speed.p99_ms).all()
    pd.testing.assert_series_equal(speed.samples_per_s, speed.batch / speed.p50_ms * 1000, check_names=False)


def test_a_batch_larger_than_the_test_set_goes_through_it_again(tiny):
    (batch,) = measure._test_batches(tiny, 1000, 9, "cpu")
    rows = tiny.rows("test")
    assert rows == 400 and torch.equal(batch.ids[:rows], batch.ids[rows : 2 * rows])
    assert len(measure._test_batches(tiny, 1, 64, "cpu")) == 64


def test_zipf_ids_stay_in_their_tables_and_prefer_the_first():
    ids = measure.zipf_ids([1, 10, 1_000_000], 20_000)
    assert ids.min() == 0 and (ids.max(0).values < torch.tensor([1, 10, 1_000_000])).all()
    counts = torch.bincount(ids[:, 1])
    assert (counts[:-1] > counts[1:]).all()
