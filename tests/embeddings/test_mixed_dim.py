"""Mixed dimensions: the power rule."""

import pytest

from pocketrec import embeddings
from pocketrec.embeddings.base import full_bytes

CARDINALITIES = [10, 1000, 100_000, 100_000]


@pytest.mark.parametrize("ratio", [1.5, 4, 10])
def test_larger_tables_are_narrower_and_the_budget_is_used(ratio):
    e = embeddings.build("mixed_dim", cardinalities=CARDINALITIES, dim=32, ratio=ratio)
    widths = e.config["widths"]
    assert widths == sorted(widths, reverse=True) and widths[2] == widths[3]
    used = e.storage().inference_bytes * ratio / full_bytes(CARDINALITIES, 32)
    assert 0.8 < used <= 1  # widths are whole numbers


def test_widths_follow_the_power_rule():
    widths = embeddings.build("mixed_dim", cardinalities=CARDINALITIES, dim=64, ratio=8, alpha=0.3).config["widths"]
    scale = widths[2] * 100_000**0.3
    assert widths[1] == pytest.approx(min(64, scale * 1000**-0.3), abs=scale / 1000**0.3 / widths[2] + 1)


def test_alpha_zero_is_one_width_for_all():
    widths = embeddings.build("mixed_dim", cardinalities=CARDINALITIES, dim=32, ratio=4, alpha=0.0).config["widths"]
    assert len(set(widths)) == 1
