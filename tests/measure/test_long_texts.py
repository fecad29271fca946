"""Texts beyond 128 tokens are timed at their own length, too."""

import pytest

from gpt2_quant.measure.latency import protocol


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_longer_texts_add_their_shapes_and_change_no_other(device):
    short, long = protocol("paper", device), protocol("paper", device, 512)
    assert long.shapes == (*short.shapes, (16, 512), (1, 512))
    assert set(long.best_shapes) <= set(long.shapes)
    assert protocol("paper", device, 64) == short
