"""--predictions with probabilities: refused as logits, and right when they are said to be."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax

from gpt2_quant.compare.comparison import compare_results
from gpt2_quant.errors import UserError


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, (200, 4))


def write(folder, values, form: str):
    folder.mkdir()
    frame = pd.DataFrame({"id": range(len(values)), "label": np.arange(len(values)) % 4})
    if form == "lists":
        frame["logits"] = values.tolist()
    else:
        frame = frame.join(pd.DataFrame(values).add_prefix("logit_"))
    for name in ("theirs", "theirs.validation"):
        if form == "csv":
            frame.to_csv(folder / f"{name}.csv", index=False)
        else:
            frame.to_parquet(folder / f"{name}.parquet", index=False)
    return folder


@pytest.mark.parametrize("form, digits", [("csv", 2), ("parquet", 4), ("lists", 16)])
def test_probabilities_are_refused_unless_said(form, digits, logits, tmp_path):
    folder = write(tmp_path / "outside", softmax(logits, axis=1).round(digits), form)
    with pytest.raises(UserError, match="are probabilities.*--probabilities"):
        compare_results(tmp_path, "theirs", folder)
    row = compare_results(tmp_path, "theirs", folder, probabilities=True).row("theirs")
    # log softmax only shifts a row, which changes neither answers nor probabilities.
    direct = write(tmp_path / "direct", log_softmax(logits, axis=1), form)
    expected = compare_results(tmp_path, "theirs", direct).row("theirs")
    close = {2: 0.05, 4: 1e-3, 16: 1e-9}[digits]
    assert row.temperature == pytest.approx(expected.temperature, rel=close)
    for name in ("log_loss", "ece"):
        if name in expected.metrics:
            found, wanted = row.metrics[name]["value"], expected.metrics[name]["value"]
            assert found == pytest.approx(wanted, rel=close)


@pytest.mark.parametrize("total", [100, 3, 0.5])
def test_percent_and_votes_are_probabilities(total, logits, tmp_path):
    chances = softmax(logits, axis=1)
    folder = write(tmp_path / "outside", total * chances, "parquet")
    with pytest.raises(UserError, match=f"each sums to {total}.*--probabilities"):
        compare_results(tmp_path, "theirs", folder)
    row = compare_results(tmp_path, "theirs", folder, probabilities=True).row("theirs")
    direct = compare_results(tmp_path, "theirs", write(tmp_path / "direct", np.log(chances), "csv"))
    assert row.metrics["nll"]["value"] == pytest.approx(
        direct.row("theirs").metrics["nll"]["value"]
    )


def test_zeros_stay_finite(tmp_path):
    folder = write(tmp_path / "outside", np.eye(4)[np.arange(40) % 4], "csv")
    row = compare_results(tmp_path, "theirs", folder, probabilities=True).row("theirs")
    assert row.metrics["accuracy"]["value"] == 1


def test_logits_are_no_probabilities(logits, tmp_path):
    folder = write(tmp_path / "outside", logits, "csv")
    with pytest.raises(UserError, match="are no probabilities.*leave out --probabilities"):
        compare_results(tmp_path, "theirs", folder, probabilities=True)
