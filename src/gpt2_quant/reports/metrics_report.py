"""What `report_1.typ` shows: the record of script 4 and its figures, as plain values."""

from pathlib import Path

from ..records import load_record
from . import compile_report

IMAGES = ("metric_edits", "metric_human_agreement", "metric_coherence", "language_model_quantization")


def write_report(results_dir: Path) -> Path:
    """Typeset `results_dir/report_1.pdf` from records/text_metrics.json and the figures beside it; returns its path.

    Raises UserError when the record is missing or damaged. A part that was not run is a sentence in the report.
    """
    record = load_record(results_dir / "records" / "text_metrics.json")
    output = results_dir / "report_1.pdf"
    compile_report("report_1.typ", {"record": record}, {name: results_dir / f"{name}.png" for name in IMAGES}, output)
    return output
