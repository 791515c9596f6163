"""Hot ids: the sketch, promotion and demotion."""

import torch

from pocketrec import embeddings
from pocketrec.optim import RowwiseAdagrad

CARDINALITIES = [3000, 5, 2000]


def build(ratio=8, **knobs):
    return embeddings.build("cafe", cardinalities=CARDINALITIES, dim=16, ratio=ratio, seed=1, **knobs)


def train(module, ids, steps=20, total=20, weight=1.0):
    optimizer = RowwiseAdagrad(module.parameters())
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (module(ids) * weight).square().sum().backward()
        optimizer.step()
        module.adapt(step, total, optimizer)
    return optimizer


def frequent(low=7, high=9):
    """Ids `low` and `high` of the large tables in every other row of a batch."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randint(0, n, (256,), generator=draw) for n in CARDINALITIES], 1)
    ids[::2, 0], ids[::2, 2] = low, high
    return ids


def hot(module):
    return set(module.hot_ids[module.hot_ids != module.nobody].tolist())


def test_bytes_by_hand():
    module = build()
    hot, rows = module.config["hot"], module.config["rows"]
    storage = module.storage()
    assert storage.inference_bytes == 64 * (hot + sum(rows)) + 4 * hot
    assert storage.training_bytes - storage.inference_bytes == hot * (4 + 4 * 8)  # slots; four entries of 8 bytes


def test_ids_beyond_int32_are_kept_in_eight_bytes():
    stored = embeddings.METHODS["cafe"].stored([2**31, 5], 16, hot=10, rows=[5, 5])
    assert stored["hot_ids"].itemsize == 8


def test_frequent_ids_become_hot_and_own_their_row():
    module = build()
    train(module, frequent())
    assert {7, 9 + 3005} <= hot(module)
    assert not {x for x in hot(module) if 3000 <= x < 3005}  # of a table kept whole
    place = module.hot_ids.tolist().index(7)
    row = module.table.weight[int(module.hot_slots[place])]
    assert torch.equal(module(torch.tensor([[7, 0, 0]]))[0, 0], row)
    ids = frequent()
    for feature in range(3):
        torch.testing.assert_close(module(ids)[:, feature], module.materialize(feature)[ids[:, feature]])
    deployed = module.deploy()
    torch.testing.assert_close(deployed(ids), module.eval()(ids), rtol=0, atol=0)
    torch.testing.assert_close(deployed(ids)[:, 0], deployed.materialize(0)[ids[:, 0]], rtol=0, atol=0)
    assert len(module.hot_slots.unique()) == len(module.hot_slots)


def test_promotion_copies_the_shared_row():
    module = build(refreshes=1)
    ids = torch.tensor([[7, 0, 9]])
    before = module(ids)
    before.sum().backward()
    module.adapt(1, 2, RowwiseAdagrad(module.parameters()))
    assert 7 in hot(module)
    assert torch.equal(module(ids), before)


def test_hot_ids_change_within_the_training_as_often_as_asked(monkeypatch):
    module, changed = build(refreshes=3), []
    optimizer = RowwiseAdagrad(module.parameters())
    monkeypatch.setattr(module, "_refresh", lambda: changed.append(step) or torch.zeros(0, dtype=torch.long))
    for step in range(1, 41):
        module.adapt(step, 40, optimizer)
    assert changed == [10, 20, 30]  # not after the last step, which nothing follows


def test_ids_that_cool_down_give_their_rows_back():
    module = build(hot_share=0.01, decay=0.1)  # a handful of hot rows
    train(module, frequent(7, 9))
    assert 7 in hot(module)
    train(module, frequent(70, 90), steps=40, total=40)
    assert {70, 90 + 3005} <= hot(module) and 7 not in hot(module)


def test_the_sketch_counts_exactly_what_fits():
    module = build()
    ids, norms = torch.tensor([5, 11, 5, 4000]), torch.tensor([1.0, 2.0, 3.0, 0.5])
    module._score(ids, norms)
    module._score(ids[:1], norms[:1])
    filled = module.sketch_scores > 0
    scores = zip(module.sketch_ids[filled].tolist(), module.sketch_scores[filled].tolist(), strict=True)
    assert dict(scores) == {5: 5.0, 11: 2.0, 4000: 0.5}


def test_evaluation_leaves_no_trace():
    module = build().eval()
    module(frequent()).sum().backward()
    assert module._seen is None
