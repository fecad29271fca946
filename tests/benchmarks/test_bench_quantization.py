"""The quantization benchmark on a tiny classifier: what it prints, and what it keeps."""

import json

import torch
from quantization_peers import through_blocks
from tiny_models import save_tiny_gpt2


def test_each_is_held_against_fp32_timed_in_turns_and_kept(tiny_tokenizer, tmp_path, run_script):
    folder, kept = save_tiny_gpt2(tmp_path / "model", tiny_tokenizer), tmp_path / "table.json"
    done = run_script(
        "benchmarks/bench_quantization.py", "--device", "cpu", "--checkpoint", folder,
        "--variants", "fp32", "w8a8", "bnb_int8", "--shapes", "2x8", "--rounds", 3, "--json", kept,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    table = json.loads(done.stdout.splitlines()[-1])
    assert table == json.loads(kept.read_text()) and table["provenance"]["device"]
    rows = {row["variant"]: row for row in table["rows"]}
    assert set(rows) == {"fp32", "w8a8", "bnb_int8"} and rows["fp32"]["error"] == 0
    assert rows["fp32"]["ratio"] == 1 and {row["n"] for row in rows.values()} == {3}
    assert all(0 < rows[name]["error"] < 0.1 for name in ("w8a8", "bnb_int8"))
    assert "cast from torch.float32" not in done.stderr


def test_blocks_called_one_by_one_give_the_models_logits(tiny_gpt2):
    """As the compiled peers are called: full texts, no padding."""
    ids = torch.randint(1, tiny_gpt2.config.vocab_size, (3, 9))  # 0 is the padding
    with torch.inference_mode():
        logits, expected = through_blocks(tiny_gpt2, ids), tiny_gpt2(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
