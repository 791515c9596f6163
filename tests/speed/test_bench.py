"""What is timed is right, and what is wrong is not timed; no test depends on a duration."""

import json

import pandas as pd
import pytest
import torch
from torch import nn

from pocketrec.errors import UserError
from pocketrec.report import speed as report
from pocketrec.speed import bench, contestants, dlrm, machine, rivals, running
from pocketrec.speed.bench import Options
from pocketrec.speed.contestants import Contestant, Tables, Unavailable

TABLES = Tables([50, 3000, 2], 16)


def options(**more):
    return Options(**{"batches": (8,), "rounds": 2, "patience": 0, "ids": ("zipf",)} | more)


def ways(dim=16):
    everything = [*contestants.table_contestants(dim, full=False), *rivals.table_rivals(dim, False, None)]
    return [
        way
        for way in everything
        if way.route not in ("torch.compile", "FBGEMM") and (way.ratio or 0) < 1000 and way.only != "cuda"
    ]


@pytest.mark.parametrize("way", ways(), ids=str)
def test_every_way_agrees_with_the_obvious_one(way):
    try:
        lookup = way.build(TABLES)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert bench.wrong(lookup, TABLES) == ""


@pytest.mark.parametrize("way", [way for way in contestants.train_contestants() if way.rank == 8], ids=str)
def test_tensor_trains_agree_with_the_obvious_way(way):
    assert bench.wrong(way.build(Tables([30_000], 16)), Tables([30_000], 16)) == ""


def test_a_wrong_output_is_found():
    lookup = contestants.fused_embedding(TABLES)
    right = lookup.forward
    lookup.forward = lambda ids: right(ids.roll(1, 0))
    assert "output" in bench.wrong(lookup, TABLES)


def test_a_wrong_training_step_is_found_and_the_right_one_taken_back():
    lookup = contestants.fused_embedding(TABLES)
    lookup.step = lambda ids, gradient: None
    before = TABLES.weight.detach().clone()
    assert "training step" in bench.wrong(lookup, TABLES)
    torch.testing.assert_close(TABLES.weight.detach(), before)


def test_what_is_wrong_or_cannot_run_is_a_row_with_a_reason():
    def broken(tables):
        lookup = contestants.bags(tables)
        return lookup.__class__(lambda ids: torch.zeros(1), None, lookup.expected, [])

    def absent(tables):
        raise Unavailable("not on this machine")

    found = [Contestant("table", "broken", broken), Contestant("table", "absent", absent)]
    found.append(Contestant("table", "bags", contestants.bags))
    table = bench._group(TABLES, found, options(), "test").set_index("route")
    assert table.reason["absent"] == "not timed: not on this machine" and table.reason["broken"].startswith(
        "wrong, and not timed"
    )
    assert pd.isna(table.ms["absent"]) and (table.ms["bags"] > 0).all()


def test_samples_are_tidy_and_full_tables_turn_over_many_batches(monkeypatch):
    monkeypatch.setattr(
        bench, "_contestants", lambda *_: [Contestant("table", "pocketrec", lambda t: contestants.ours("full", t))]
    )
    frame = bench.bench([50, 3000], options(families=["table"], rivals=None))
    timed = frame[frame.ms.notna()]
    assert set(timed.work) == {"forward", "step"} and set(timed.batch) == {8} and (timed.foreign >= 0).all()
    assert timed[timed.route == "pocketrec"].groupby("work").size().tolist() == [2, 2]
    assert len(bench.drawn_ids([50], 2048, "uniform", "cpu")) == 64


def test_disturbed_rounds_are_taken_again_until_patience_ends(monkeypatch):
    load = iter([0.9, 0.0, 0.5, 0.02])
    monkeypatch.setattr(bench.Load, "share", lambda self: next(load))
    calls = {"a": lambda: None}
    assert [taken.foreign for taken in bench.rounds(calls, options(patience=1))] == [0.0, 0.02]


def test_a_large_tensor_is_filled_with_real_numbers_and_limits_are_positive(monkeypatch):
    assert machine.fill(machine.huge(torch.empty(3, 1 << 20))).abs().min(1).values.max() < 0.1
    monkeypatch.setattr(machine, "OUT_OF_CACHE", 1 << 20)
    assert all(value > 0 for value in machine.limits("cpu").values())


def test_the_limit_reads_what_it_says():
    table, index = torch.randn(40, 16), torch.randint(40, (7, 3), dtype=torch.int32)
    out = torch.empty(7, 3, 16)
    machine.gather(table, index, out)
    assert torch.equal(out, nn.functional.embedding(index, table))
    blocks = table.flatten().unfold(0, 16, 1)  # they start anywhere, and overlap
    machine.gather(blocks, index * 15, out)
    assert torch.equal(out, blocks[index.long() * 15])
    target = torch.empty(640)
    machine.copy(table.view(-1), target)
    assert torch.equal(target, table.view(-1))


def test_a_rival_without_its_checkout_says_what_to_name(tmp_path):
    with pytest.raises(Unavailable, match="--rivals"):
        rivals._checkout(None, "cce", "cce.robe")
    with pytest.raises(Unavailable, match="no folder cce"):
        rivals._cce(tmp_path, "robe")


def test_a_checkout_is_imported_and_the_path_left_alone(tmp_path):
    (tmp_path / "cce/cce").mkdir(parents=True)
    (tmp_path / "cce/cce/only_here.py").write_text("ANSWER = 42")
    before = list(__import__("sys").path)
    assert rivals._cce(tmp_path, "only_here").ANSWER == 42 and __import__("sys").path == before
    __import__("sys").modules.pop("cce")


def test_the_whole_model_has_a_floor(monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.compile", lambda module: compiled.append(module) or module)  # takes long
    monkeypatch.setattr(dlrm, "LOWER", (dlrm.FLOOR,))  # most processors emulate it
    frame = dlrm.bench([40_000] * 7, options())
    known = {dlrm.FLOOR, f"{dlrm.FLOOR}, bf16", dlrm.BAGS, *dlrm.METHODS, dlrm.COMPILED, dlrm.UNPAIRED}
    assert set(frame.embedding) == known and len(compiled) == 2
    assert set(frame.work) == {"training step", "request"} and (frame.ms > 0).all()


def test_models_of_a_gpu_are_timed_launched_and_captured(monkeypatch):
    monkeypatch.setattr(dlrm, "captured", lambda call: call)
    monkeypatch.setitem(dlrm.METHODS["tt_rec rank 32"], "tables", 1)
    frame = dlrm.on_gpu(TABLES.cardinalities, options(dims=(16,)))
    names = [dlrm.FLOOR, dlrm.BAGS, *dlrm.METHODS]
    assert set(frame.embedding) == {*names, *(f"{name}, {bench.GRAPH}" for name in names), dlrm.HOSTED}
    answers = {("answers", 8), ("request", 1)}
    assert set(zip(frame.work, frame.batch, strict=True)) == answers | {("training step", 8)}
    hosted = frame[frame.embedding == dlrm.HOSTED]
    assert set(zip(hosted.work, hosted.batch, strict=True)) == answers and (frame.ms > 0).all()
    speed = report.Speed(
        pd.DataFrame(samples("pocketrec", [1.0])), frame, pd.DataFrame(), {"device": "H200", "copy_gb_s": 1.0}
    )
    assert sum(bool(ax.lines or ax.collections) for ax in report.model(speed).axes) == 3
    found = report.bars(speed).set_index("bar")["measured"]
    assert found[f"DLRM, answers, batch 8, robe against {dlrm.HOSTED}, both launched by torch"] > 0


@pytest.mark.slow
def test_a_way_that_would_need_more_memory_than_there_is_is_not_timed(monkeypatch):
    monkeypatch.setattr(bench, "INDEXED", {"forward": 12, "step": 1e12})
    frame = bench.bench(TABLES.cardinalities, options(dims=(16,), families=["robe"]))
    plain = frame[frame.route == "plain PyTorch"]
    assert (
        set(plain[plain.ms.notna()].work) == {"forward"}
        and plain.reason.dropna().str.startswith("not timed, step").any()
    )
    assert set(frame[frame.ms.notna() & (frame.route == "pocketrec")].work) == {"forward", "step"}


def test_the_table_in_main_memory_looks_up_the_same_rows():
    ids = torch.tensor([[1, 2, 0], [0, 5, 3]]) % torch.tensor(TABLES.cardinalities)[:3]
    tables = Tables(TABLES.cardinalities[:3], 16)
    exact = torch.nn.functional.embedding(ids + tables.offsets, tables.weight)
    assert torch.equal(dlrm._Hosted(tables, "cpu")(ids), exact)


def test_what_a_step_takes_above_its_floor_is_compared_round_by_round():
    names = [dlrm.FLOOR, *dlrm.METHODS]
    slower = [0, 40, 1]  # what befell the machine in a round meets all of it
    rows = [
        {"embedding": name, "work": work, "ms": 60 + place + late}
        for late in slower
        for work in ("training step", "request")
        for place, name in enumerate(names)
    ]
    rows += [{"embedding": dlrm.BAGS, "work": "request", "ms": 100}]
    table = report.bars(
        report.Speed(pd.DataFrame(samples("pocketrec", [1.0])), pd.DataFrame(rows), pd.DataFrame(), {"device": "cpu"})
    )
    found = table.set_index("bar")["measured"]
    above = [found[f"DLRM, training step, {name} above its MLPs"] for name in dlrm.METHODS]
    assert above == [1, 2, 3]


def test_on_a_gpu_bars_are_shares_of_a_copy():
    at = {"dim": 128, "batch": 65_536}
    rows = samples("pocketrec", [1.0], work="forward", bytes_needed=3e9, launch="CUDA graph", **at)
    rows += samples("pocketrec", [3.0], work="step", bytes_needed=7e9, launch="CUDA graph", **at)
    machine = {"device": "H200", "copy_gb_s": 4000.0}
    speed = report.Speed(pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame(), machine)
    table = report.bars(speed).set_index("bar")
    assert table.loc["Full table, forward, share of a copy's speed", "measured"] == 0.75
    assert table.loc["Full table, backward and update, share of a copy's speed", "measured"] == 0.5
    assert table.loc["ROBE-32, forward, share of a copy's speed", "verdict"] == "not measured"
    assert report.times(speed, dim=128).share_of_copy.max() == 0.75 and report.roofline(speed, 65_536).axes


def test_models_on_a_gpu_are_compared_launched_alike():
    ms = {"robe": 2.0, "robe, CUDA graph": 1.0, dlrm.BAGS: 10.0, f"{dlrm.BAGS}, CUDA graph": 3.0, dlrm.HOSTED: 50.0}
    frame = pd.DataFrame({"embedding": ms.keys(), "ms": ms.values(), "work": "answers", "batch": 8})
    machine = {"device": "H200", "copy_gb_s": 1.0}
    speed = report.Speed(pd.DataFrame(samples("pocketrec", [1.0])), frame, pd.DataFrame(), machine)
    found = report.bars(speed).set_index("bar")["measured"]
    assert found[f"DLRM, answers, batch 8, robe against {dlrm.BAGS}, both as a CUDA graph"] == 3
    assert found[f"DLRM, answers, batch 8, robe against {dlrm.HOSTED}, both launched by torch"] == 25


def test_what_just_misses_is_written_with_the_digits_that_tell():
    bar = {"bar": "a lookup", "asks": "at most", "need": 10.0, "unit": "µs", "verdict": "not reached"}
    share = bar | {"asks": "at least", "need": 0.8, "unit": "share"}
    table = pd.DataFrame([bar | {"measured": 10.0034}, share | {"measured": 0.7991}, share | {"measured": 0.5}])
    assert report._written(table)["Measured"].tolist() == ["10.003 µs", "79.9%", "50%"]
    assert report._written(table)["Asks"].tolist() == ["at most 10 µs", "at least 80%", "at least 80%"]


def test_what_reading_costs_is_a_share_of_an_epoch(tiny):
    found = dlrm.reading(tiny, rows=2000, batch=64)
    assert found["reading_steps"] == 32 and found["reading_step_ms"] > 0
    assert 0 < found["reading_waiting_share"] < 1 and found["reading_share"] < 1


def test_options_are_checked():
    with pytest.raises(UserError, match="robe"):
        running.options(False, "rob", None, None, None, device="cpu", rivals=None)
    with pytest.raises(UserError, match="numbers"):
        running.options(False, None, "wide", None, None, device="cpu", rivals=None)


def samples(route, ms, **more):
    point = {"family": "table", "dim": 16, "batch": 2048, "ids": "zipf", "work": "step", "foreign": 0.0}
    empty = dict.fromkeys(["ratio", "block_size", "hash", "rank", "reason"])
    rest = {"core_to_core_ns": 60.0, "lookups": 10, "bytes_moved": 100}
    return [empty | point | rest | {"route": route, "ms": x} | more for x in ms]


def test_bars_are_ratios_of_medians_and_say_what_is_missing():
    rows = samples("pocketrec", [1, 2, 9]) + samples("26 x nn.EmbeddingBag", [13, 14, 90])
    speed = report.Speed(pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame(), {})
    table = report.bars(speed).set_index("bar")
    row = table.loc["Full table, step against 26 x nn.EmbeddingBag"]
    assert (row.measured, row.verdict) == (7.0, "reached")
    assert table.loc["Full table, step against FBGEMM"].verdict == "not measured"


def test_a_bar_over_several_points_counts_the_worst():
    train = {"family": "tensor_train", "rank": 8, "work": "forward"}
    rows = samples("pocketrec", [1], **train) + samples("plain PyTorch", [20], **train)
    rows += samples("pocketrec", [1], ids="uniform", **train) + samples("plain PyTorch", [3], ids="uniform", **train)
    speed = report.Speed(pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame(), {})
    row = report.bars(speed).set_index("bar").loc["Tensor train, ranks 8 to 64, forward against plain batched matmul"]
    assert (row.measured, row.verdict) == (3.0, "not reached")


def test_the_contracted_form_has_a_bar_of_its_own():
    train = {"family": "tensor_train", "rank": 8, "work": "forward"}
    rows = samples("pocketrec", [1], **train) + samples("pocketrec, contracted", [0.5], **train)
    speed = report.Speed(
        pd.DataFrame(rows + samples("plain PyTorch", [11], **train)), pd.DataFrame(), pd.DataFrame(), {}
    )
    found = report.bars(speed).set_index("bar")["measured"]
    assert found["Tensor train, contracted, forward against plain batched matmul"] == 22
    assert found["Tensor train, ranks 8 to 64, forward against plain batched matmul"] == 11


def test_every_picture_is_drawn_or_says_why_not():
    table = {"family": "table", "work": "forward"}
    rows = samples("pocketrec", [1.0], **table) + samples("limit", [0.8], **table)
    rows += samples("26 x nn.EmbeddingBag", [5.0], **table) + samples("pocketrec", [1.0], **table | {"batch": 1})
    speed = report.Speed(pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame(), {})
    trains = samples("pocketrec", [1.0], family="tensor_train", work="forward", rank=8)
    nothing = report.roofline(report.Speed(pd.DataFrame(trains), pd.DataFrame(), pd.DataFrame(), {}))
    assert "Nothing to compare with" in nothing.axes[0].texts[0].get_text()
    pictures = [report.against_bars, report.against_batch, report.roofline, report.model]
    assert all(picture(speed).axes for picture in pictures)
    assert "Not measured here" in report.operators(speed).to_html()
    assert "Nothing was timed at dim 99" in report.listing(speed, dim=99).to_html()
    assert "known indices" in report.listing(speed, batch=2048, dim=16, ids="zipf").to_html()
    assert "Everything" in report.not_timed(speed).to_html() and "0% of 4" in report.state(speed).to_html()
    assert report.times(speed, batch=2048).share_of_known.max() == pytest.approx(1.0)


def test_measuring_a_point_again_replaces_it_and_keeps_the_others(tmp_path):
    path = tmp_path / "samples.parquet"
    running._keep(path, pd.DataFrame(samples("a", [1.0, 2.0]) + samples("b", [3.0])), add=True)
    running._keep(path, pd.DataFrame(samples("a", [9.0])), add=True)
    assert sorted(pd.read_parquet(path).ms) == [3.0, 9.0]


def test_a_family_of_which_all_ways_run_has_no_reason():
    samples = bench.bench([40_000, 2000], options(families=["hashing"]))
    assert samples["reason"].isna().all() and (samples["ms"] > 0).all()


def test_samples_of_other_threads_are_not_put_beside_each_other(tmp_path):
    here = machine.description("cpu")
    running._check_same(tmp_path / "machine.json", here)
    (tmp_path / "machine.json").write_text(json.dumps(here | {"threads": 64}))
    with pytest.raises(UserError, match="threads 64.*--add"):
        running._check_same(tmp_path / "machine.json", here)
    (tmp_path / "machine.json").write_text(json.dumps(here | {"device": "NVIDIA H200"}))
    with pytest.raises(UserError, match="device NVIDIA H200"):
        running._check_same(tmp_path / "machine.json", here)


def test_a_new_bench_keeps_the_files_of_the_last_one_aside(tmp_path):
    running._put_aside(tmp_path)
    for name in ("machine.json", "dlrm.parquet"):
        (tmp_path / name).write_text("before")
    running._put_aside(tmp_path)
    (kept,) = (tmp_path / "replaced").iterdir()
    assert sorted(file.name for file in kept.iterdir()) == ["dlrm.parquet", "machine.json"]
    assert [file.name for file in tmp_path.iterdir()] == ["replaced"]
