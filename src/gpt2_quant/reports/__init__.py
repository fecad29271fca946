"""Typesetting: a Typst template, its data and figures, compiled to one PDF.

A `.typ` template here holds words and layout; all numbers come from `data.json`, whose strings are
set as text, never evaluated as markup. Only Typst's own fonts are used: pages do not depend on the
machine. Importing raises UserError without typst.
"""

import shutil
import tempfile
from pathlib import Path
from string import Formatter

from ..errors import UserError
from ..records import atomic_path, write_json

try:  # script 4 imports this before it measures
    import typst
except ImportError:
    raise UserError("the reports need typst: pip install -r requirements.txt") from None


class _HalfUp(Formatter):
    def format_field(self, value, format_spec):
        # As a float 0.9115 is a little less: 91.1% in a sentence, 91.2% in its table.
        nudged = isinstance(value, float) and format_spec
        return super().format_field(value * (1 + 1e-9) if nudged else value, format_spec)


fill = _HalfUp().format  # `str.format` for sentences, with a half rounded up as style.typ does


def compile_report(template_name: str, data: dict, images: dict[str, Path], output: Path) -> None:
    """Compile `reports/<template_name>` to the PDF file `output`, atomically.

    `data` is any value that JSON holds (NaN becomes null); `images` maps a name, a key of
    `data.images`, to a PNG, SVG or PDF file; missing files are left out.
    """
    with tempfile.TemporaryDirectory(prefix="report_") as folder:
        build = Path(folder)
        for template in Path(__file__).parent.glob("*.typ"):
            shutil.copy(template, build)
        placed: dict[str, str] = {}
        for name, path in images.items():
            if path.is_file():
                if path.suffix == ".pdf" and b"%%EOF" not in path.read_bytes()[-1024:]:
                    raise UserError(f"{path} is damaged: delete it, or make it again")
                placed[name] = f"image_{len(placed)}{path.suffix}"
                shutil.copy(path, build / placed[name])
        write_json(build / "data.json", {**data, "images": placed})
        with atomic_path(output) as temporary:
            source, target, root = map(str, (build / template_name, temporary, build))
            typst.compile(source, output=target, root=root, ignore_system_fonts=True)
