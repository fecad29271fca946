"""Typesetting: a Typst template, the data it shows and the figures it places, compiled to one PDF.

A template, a `.typ` file in this folder, holds the words and the layout and no number of its own:
all figures come from `data.json`. Strings from the data are set as text, never evaluated as markup.
Only the fonts that Typst carries are used: the same data give the same pages on any machine.
"""

import shutil
import tempfile
from pathlib import Path

from ..errors import UserError
from ..records import atomic_path, write_json


def compile_report(template_name: str, data: dict, images: dict[str, Path], output: Path) -> None:
    """Compile `reports/<template_name>` to the PDF file `output`, atomically.

    `data` is any value that JSON holds (NaN becomes null); `images` maps a name to a PNG, SVG or
    PDF file, whose path the template finds in `data.images`; one that does not exist is left out.
    Raises UserError when the `typst` package is missing.
    """
    try:
        import typst
    except ImportError:
        fault = f"{output.name} needs the typst package"
        raise UserError(f"{fault}: pip install -r requirements.txt") from None
    with tempfile.TemporaryDirectory(prefix="report_") as folder:
        build = Path(folder)
        for template in Path(__file__).parent.glob("*.typ"):
            shutil.copy(template, build)
        placed: dict[str, str] = {}
        for name, path in images.items():
            if path.is_file():
                placed[name] = f"image_{len(placed)}{path.suffix}"
                shutil.copy(path, build / placed[name])
        write_json(build / "data.json", {**data, "images": placed})
        with atomic_path(output) as temporary:
            # A template that does not compile is a fault of ours: typst.TypstError passes through.
            source, target, root = map(str, (build / template_name, temporary, build))
            typst.compile(source, output=target, root=root, ignore_system_fonts=True)
