"""Two news stories, written for this project, each in several retellings.

Kinds that keep the meaning (`copy`, `paraphrase`, `compressed`) should outrank those that break it
(`negated`, `wrong number`, `roles swapped`, `another story`). The rest are edge cases.
"""

import json
from pathlib import Path

_DATA = json.loads(Path(__file__).with_name("retold_stories.json").read_text(encoding="utf-8"))
_FERRY, _BANK = (story["original"] for story in _DATA["stories"])

# (kind, candidate, reference)
EXAMPLES: list[tuple[str, str, str]] = [
    (kind, text, story["original"])
    for story in _DATA["stories"]
    for kind, text in {"copy": story["original"], **story["retold"]}.items()
]
EXAMPLES += [("another story", _BANK, _FERRY), ("another story", _FERRY, _BANK)]
EXAMPLES += [(kind, text, reference) for kind, text, reference in _DATA["edge cases"]]

# The report prints edits of this story: the study's texts belong to their owners.
EDIT_STORY, OTHER_STORY = _DATA["story to edit"], _BANK
