"""Which files that git would keep hold texts of a data set: none may, the texts are not ours."""

import re
import shutil
import subprocess
from pathlib import Path

import pypdf
from tiny_models import ROOT

LENGTH = 40  # letters in a row, white space aside


def _letters(text: str) -> str:
    return re.sub(r"\s", "", text)


def files_with_texts(folder: Path, texts: list[str]) -> list[str]:
    """Files below `folder`, not ignored by git, that hold 40 letters in a row of one of `texts`.

    Read are PDFs' text and every other file's bytes as UTF-8.
    """
    shutil.copy(ROOT / ".gitignore", folder)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    command = ["git", "-C", folder, "ls-files", "-z", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    known = {
        letters[i : i + LENGTH]
        for letters in map(_letters, texts)
        for i in range(len(letters) - LENGTH + 1)
    }
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        if name.endswith(".pdf"):
            content = "".join(page.extract_text() for page in pypdf.PdfReader(folder / name).pages)
        else:
            content = (folder / name).read_bytes().decode("utf-8", "ignore")
        content = _letters(content)
        if any(content[i : i + LENGTH] in known for i in range(len(content) - LENGTH + 1)):
            found.append(name)
    return found
