"""Human judgements, from the hub or a folder.

SummEval (Fabbri et al. 2021): 100 news articles, each with 11 reference summaries and those of 16
systems, rated 1 to 5. STS Benchmark test (Cer et al. 2017): 1,379 pairs of sentences, similarity 0
to 5.

A folder holds `summeval.jsonl` (per line a document: id, source, references, systems: {name:
{summary, coherence, …}}) and `stsb_test.csv` (tab-separated, no header: genre, file, year, id,
score, sentence 1, sentence 2).
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.hub import hub_faults
from ...errors import UserError

QUALITIES = ("coherence", "consistency", "fluency", "relevance")
SUMMEVAL = ("mteb/summeval", "cda12ad7615edc362dbf25a00fdd61d3b1eaf93c")
READ_BY = {"edits", "humans", "coherence"}
STSB = ("sentence-transformers/stsb", "ab7a5ac0e35aa22088bdcf23e7fd99b220e53308")


@dataclass(frozen=True)
class SummEval:
    """n documents x s systems: `summaries` [n][s], `references` [n][11], `ratings` quality ->
    float64 [n, s].
    """

    sources: list[str]
    references: list[list[str]]
    systems: list[str]
    summaries: list[list[str]]
    ratings: dict[str, np.ndarray]


@dataclass(frozen=True)
class SentencePairs:
    """n pairs, similarity float64 [n], of 0 to 5 or 0 to 1."""

    first: list[str]
    second: list[str]
    similarity: np.ndarray


People = tuple[SummEval, SentencePairs]


def judgements_or_none(flag: str | None, preset: str, parts: set[str]) -> People | None:
    """What --human-judgements asks for, by default the hub's; None where no part reads them, in the
    demo, and where the hub is out of reach.
    """
    if not parts & READ_BY:
        return None
    if flag:
        return load_human_judgements(flag)
    reason = "the demo has no human judgements; --human-judgements hub|FOLDER adds them"
    if preset != "demo":
        try:
            return load_human_judgements("hub")
        except UserError as fault:
            reason = str(fault)
    print(f"Left out: humans ({reason}).")
    return None


def load_human_judgements(where: str) -> People:
    """Both data sets from "hub" or the folder `where`.

    Raises UserError when the hub is out of reach, or the folder lacks a file or holds another.
    """
    if where == "hub":
        return _summeval_from_hub(), _stsb_from_hub()
    summeval, stsb = Path(where) / "summeval.jsonl", Path(where) / "stsb_test.csv"
    flag = f"--human-judgements {where}"
    try:
        return _summeval_from_folder(summeval), _stsb_from_folder(stsb)
    except OSError as fault:
        name = Path(fault.filename).name
        raise UserError(f"{flag} has no {name}: give the folder that holds it, or hub") from fault
    except (ValueError, LookupError, TypeError) as fault:
        form = "see metrics/studies/human_judgements.py"
        raise UserError(f"{flag} is not in the stated form ({fault!r}): {form}") from fault


def _summeval_from_folder(path: Path) -> SummEval:
    documents = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    systems = sorted(documents[0]["systems"])

    def column(name: str) -> list[list]:
        return [[document["systems"][s][name] for s in systems] for document in documents]

    sources, references = ([d[name] for d in documents] for name in ("source", "references"))
    ratings = {quality: np.array(column(quality), float) for quality in QUALITIES}
    return SummEval(sources, references, systems, column("summary"), ratings)


def _stsb_from_folder(path: Path) -> SentencePairs:
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    *_, similarity, first, second = zip(*(row[:7] for row in rows), strict=True)
    return SentencePairs(list(first), list(second), np.array(similarity, float))


def _dataset(name: str, revision: str):
    from datasets import load_dataset

    with hub_faults(name, "--human-judgements"):
        return load_dataset(name, revision=revision, split="test")


def _summeval_from_hub() -> SummEval:
    rows = _dataset(*SUMMEVAL)
    references, summaries = (list(rows[f"{who}_summaries"]) for who in ("human", "machine"))
    systems = [f"system {i}" for i in range(len(summaries[0]))]
    ratings = {quality: np.array(rows[quality], float) for quality in QUALITIES}
    return SummEval(list(rows["text"]), references, systems, summaries, ratings)


def _stsb_from_hub() -> SentencePairs:
    rows = _dataset(*STSB)
    first, second = (list(rows[f"sentence{i}"]) for i in (1, 2))
    return SentencePairs(first, second, np.array(rows["score"], float))
