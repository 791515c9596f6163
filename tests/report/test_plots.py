import pandas as pd
import pytest
import records
from matplotlib.colors import to_hex

from pocketrec import report
from pocketrec.report import plots
from pocketrec.report.statistics import finding


@pytest.fixture(scope="module")
def results(suite):
    return report.load_results(suite)


def _texts(figure) -> str:
    return "\n".join(text.get_text() for ax in figure.axes for text in [*ax.texts, ax.title, ax._left_title])


def test_auc_vs_ratio_has_lines_labels_and_the_ceiling(results):
    figure = plots.auc_vs_ratio(results)
    books, planted = figure.axes
    named = {"robe", "hashing", "low_dim", "full"}
    assert {text.get_text() for text in planted.texts} == named | {"best reachable 0.780 ↑"}
    assert {text.get_text() for text in books.texts} == named
    assert planted.get_xscale() == "log"
    assert planted.get_xlabel() == "Compression achieved (×)"
    assert planted.get_title(loc="left").startswith("planted: robe at ")


def test_a_ceiling_that_is_near_is_a_line(results):
    near = plots.auc_vs_ratio(results.assign(bayes_auc=results["auc"].max() + 0.01)).axes[0]
    assert "ceiling" in {text.get_text() for text in near.texts}
    assert any(line.get_linestyle() == "--" for line in near.lines)


def test_a_method_with_one_ratio_has_a_bar_and_a_rival_with_one_a_marker(results):
    once = results[(results["method"] != "robe") | (results["ratio_requested"] == 10)]
    assert len(plots.auc_vs_ratio(once).axes[0].containers[0].lines[2]) == 1
    rivals = plots.auc_vs_ratio(once, "hashing").axes[0].lines
    assert any(line.get_color() == plots.GRID and line.get_marker() == "o" for line in rivals)


def test_bytes_fall_to_the_right(results):
    left, right = plots.auc_vs_bytes(results).axes[0].get_xlim()
    assert left > right


def test_thirty_labels_stay_beside_the_axis(results):
    many = pd.concat([results.assign(variant=f"dim={dim}") for dim in range(10)])
    figure = plots.auc_vs_ratio(many)
    figure.canvas.draw()
    for ax in figure.axes:
        inside = ax.get_window_extent()
        assert all(inside.y0 - 9 < text.get_window_extent().y0 < inside.y1 for text in ax.texts)


def test_a_crowd_has_no_bands_and_a_marker_beside_every_name(results):
    crowd = pd.concat([results.assign(variant=f"dim={dim}") for dim in range(3)])
    few, many = (plots.auc_vs_ratio(rows).axes[0] for rows in (results, crowd))
    assert any(len(band.get_paths()) for band in few.collections)
    assert not any(len(band.get_paths()) for band in many.collections)
    assert few.get_ylabel() == "Test AUC (mean, 95 % band)" and many.get_ylabel() == "Test AUC (mean over seeds)"
    labels = [text for text in many.texts if "best reachable" not in text.get_text()]
    markers = [line for line in many.lines if line.get_transform() != many.transData and line.get_marker() != "None"]
    assert len(markers) == len(labels) - 1  # the baseline is a line


def test_variants_are_told_apart_and_in_the_order_of_their_numbers(suite):
    curves = report.load_curves(suite)
    many = pd.concat([curves.assign(variant=f"dim={dim}") for dim in (16, 2, 32, 4, 8)])
    lines = [line for line in plots.learning_curves(many).axes[0].lines if len(line.get_xdata()) > 2]
    assert len({(to_hex(line.get_color()), str(line.get_linestyle()), line.get_marker()) for line in lines}) > 5
    ax = plots.status_map(report.load_results(suite).assign(variant="dim=16").pipe(_with_dim_2)).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()][:2] == ["full, dim=2", "full, dim=16"]


def _with_dim_2(runs: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([runs, runs.assign(variant="dim=2")], ignore_index=True)


def test_times_that_are_near_are_ties(suite):
    title = plots.latency(report.load_speed(suite)).axes[0].get_title(loc="left").replace("\n", " ")
    assert "4 of 10 within 10 % of the fastest" in title and "(timed once)" in title


def test_labels_do_not_overlap(results):
    figure = plots.auc_vs_ratio(results)
    figure.canvas.draw()
    for ax in figure.axes:
        boxes = [text.get_window_extent() for text in ax.texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_method_looks_the_same_everywhere(results, suite):
    figures = [plots.auc_vs_ratio(results), plots.auc_vs_bytes(results)]
    figures += [plots.learning_curves(report.load_curves(suite)), plots.latency(report.load_speed(suite))]
    for figure in figures:
        assert plots.colour("robe") in {to_hex(line.get_color()) for line in figure.axes[0].lines}
    looks = {plots.look(method) for method in ("full", "robe", "hashing", "low_dim", "tt_rec", "of_my_own")}
    assert len(looks) == 6


def test_status_map_tells_every_ending(results):
    figure = plots.status_map(results)
    text = _texts(figure)
    assert "infeasible" in text
    assert "✕ crashed\nDeadKernelError: Ker…" in text
    assert "2 seeds, ✕ 1" in text
    assert any(patch.get_hatch() for patch in figure.axes[0].patches)


def test_axes_carry_units(results, suite):
    assert plots.auc_vs_bytes(results).axes[0].get_xlabel().endswith("(MB)")
    assert plots.latency(report.load_speed(suite)).axes[0].get_xlabel().endswith("(ms)")


@pytest.mark.parametrize("method", ["robe", "full"])
def test_one_run_of_one_method(tmp_path, method):
    ratio = 1 if method == "full" else 10
    folder = records.write(tmp_path, [records.quality(method, "planted", ratio, 0)])
    results = report.load_results(folder)
    for draw in (plots.auc_vs_ratio, plots.auc_vs_bytes, plots.status_map):
        draw(results).canvas.draw()
    plots.learning_curves(report.load_curves(folder)).canvas.draw()


def test_curves_without_a_validation_score_give_a_sentence(results, suite):
    curves = report.load_curves(suite)
    assert "No learning curve" in _texts(plots.learning_curves(curves.assign(validation_auc=float("nan"))))


def test_a_cell_with_a_failed_seed_does_not_make_the_headline(tmp_path):
    done = [
        records.quality(method, "planted", ratio, 0) for method, ratio in (("full", 1), ("robe", 10), ("hashing", 10))
    ]
    lost = [records.failed("oom", "MemoryError: 4 GB", "robe", "planted", 10, 1)]
    results = report.load_results(records.write(tmp_path, done + lost))
    assert "hashing at 10" in finding(results)


def test_only_failures_give_a_sentence(tmp_path):
    lost = [records.failed("oom", "MemoryError: 4 GB", "robe", "planted", 10, seed) for seed in range(2)]
    folder = records.write(tmp_path, lost)
    results = report.load_results(folder)
    assert "No AUC to show: 0 of 2 runs done, 2 oom." in _texts(plots.auc_vs_ratio(results))
    assert "✕ oom" in _texts(plots.status_map(results))
    assert "No learning curve" in _texts(plots.learning_curves(report.load_curves(folder)))
    assert "No latency" in _texts(plots.latency(report.load_speed(folder)))


def test_searches_ring_what_ends_the_list():
    cell = {"dataset": "planted", "variant": "", "parameter": "table_lr", "validation_auc": 0.7}
    tried = pd.DataFrame(
        cell | {"method": method, "ratio_requested": 10.0, "value": value, "chosen": value == best, "end": end}
        for method, best, end in (("robe", 0.1, ""), ("full", 0.01, "lowest"))
        for value in (0.01, 0.1, 1.0)
        if value == best or not end
    )
    (ax,) = plots.searches(tried).axes
    assert "1 of 2" in ax.get_title(loc="left")
    assert ax.get_xlabel() == "Best learning rate of the tables"
    assert [line.get_mec() for line in ax.lines].count(plots.ALARM) == 1
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.01", "0.1", "1"]
    assert "fixed" in _texts(plots.searches(tried.iloc[:0]))


def test_searched_words_stand_side_by_side():
    rows = [
        {"dataset": "planted", "method": "robe", "variant": "", "ratio_requested": ratio, "parameter": "schedule"}
        | {"value": word, "validation_auc": 0.7, "chosen": word == "plateau", "end": ""}
        for ratio in (10.0, 100.0)
        for word in ("constant", "plateau")
    ]
    (ax,) = plots.searches(pd.DataFrame(rows)).axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["constant", "plateau"]
    assert list(ax.lines[0].get_xdata()) == [1, 1]
    assert "plateau is the best in 2 of 2" in ax.get_title(loc="left").replace("\n", " ")
