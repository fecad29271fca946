"""A small set to see every metric at work: two news stories, each told again in nine ways that a
reader would tell apart at once.

Written for this project; the texts are in retold_stories.json. The kinds that keep the meaning
(`copy`, `paraphrase`, `compressed`) should outrank those that break it (`negated`, `wrong number`,
`roles swapped`, `another story`), and no metric of overlap manages that. The last three examples
are there because metrics crash on them.
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

# The report prints every controlled edit of this story: the texts that the edit study scores belong
# to their owners and stay out of the results. An edit that needs another matter takes the bank's.
EDIT_STORY, OTHER_STORY = _DATA["story to edit"], _BANK
