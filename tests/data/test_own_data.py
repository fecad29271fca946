"""Data sets of one's own: every form gives the same splits, guesses are made only where one thing
can be meant, and each fault has its sentence.
"""

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from gpt2_quant.cli import parser, settings_from
from gpt2_quant.data.ag_news import read_csv
from gpt2_quant.data.classes import MOST_CLASSES
from gpt2_quant.data.datasets import load_splits
from gpt2_quant.data.tokens import tokenize
from gpt2_quant.errors import UserError

NAMES = ('good, "really"', "bad\nor so", "007")


def load(place: Path, *flags: str):
    asked = ["--dataset", str(place), "--device", "cpu", "--results-dir", str(place) + ".results"]
    return load_splits(settings_from(parser("").parse_args([*asked, *flags])))


def rows_of(n: int, split: str = "train") -> tuple[list[str], list[str]]:
    texts = [f'{split}, text {i}:\n"NA"' if i else "NA" for i in range(n)]
    return texts, [NAMES[i % 3] for i in range(n)]


def write_rows(path: Path, texts: list, labels: list, header=("text", "label")) -> Path:
    """By the file's ending; None as header leaves it out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(zip(texts, labels, strict=True))
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(
            pyarrow.table(dict(zip(header, (texts, labels), strict=True))), path
        )
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
        )
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([*([header] if header else []), *rows])
    return path


def fault_of(place: Path, *flags: str) -> str:
    with pytest.raises(UserError) as fault:
        load(place, *flags)
    sentence = str(fault.value)
    assert "\n" not in sentence and len(sentence) < 500
    return sentence


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_form_gives_the_same_texts_labels_and_names(suffix, tmp_path, capsys):
    for split, n in (("train", 300), ("test", 30)):
        write_rows(tmp_path / f"{split}{suffix}", *rows_of(n, split))
    splits = load(tmp_path)
    texts, labels = rows_of(30, "test")
    assert list(splits["test"].texts) == texts
    assert splits["train"].classes == tuple(sorted(NAMES))
    assert [splits["test"].classes[label] for label in splits["test"].labels] == labels
    for split in ("train", "validation"):
        for text in splits[split].texts:
            number = int(hashlib.sha256(text.encode()).hexdigest(), 16)
            assert (number % 20 == 0) == (split == "validation")
    said = capsys.readouterr().out
    assert "texts are read from column text, labels from label" in said
    assert "there is no validation split: 5% of train" in said
    facts = splits["test"].describe()
    assert facts["n_classes"] == 3 and facts["majority_fraction"] == pytest.approx(1 / 3)


def test_one_file_is_cut_into_three_by_content_and_twice_the_same(tmp_path):
    path = write_rows(tmp_path / "mine.csv", *rows_of(400))
    splits, again = load(path), load(path, "--seed", "9")
    sizes = {name: len(split.texts) for name, split in splits.items()}
    assert sum(sizes.values()) == 400 and sizes["train"] > 300
    assert sizes["test"] > sizes["validation"] > 0
    assert not set(splits["train"].texts) & set(splits["test"].texts)
    assert {n: s.sha256 for n, s in splits.items()} == {n: s.sha256 for n, s in again.items()}


def test_a_csv_without_header_is_known_by_numbers(tmp_path):
    texts, labels = rows_of(300)
    numbers = [NAMES.index(label) + 1 for label in labels]
    own = write_rows(tmp_path / "a.csv", texts, numbers, header=None)
    assert load(own)["train"].classes == ("1", "2", "3")
    named = write_rows(tmp_path / "b.csv", texts, labels, header=None)
    splits = load(named, "--text-columns", "0", "--label-column", "1")
    assert splits["train"].classes == tuple(sorted(NAMES))
    assert sum(len(split.texts) for split in splits.values()) == 300
    # The first row is a header where it says no number and no column is named by one.
    assert "--label-column" in fault_of(named)


@pytest.mark.parametrize("start", [0, 1])
def test_classes_txt_names_numbers_and_several_columns_are_joined(start, tmp_path):
    rows = {
        "title": [f"title {i}" for i in range(90)],
        "body": [f"body {i}" for i in range(90)],
        "label": [i % 3 + start for i in range(90)],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "train.parquet")
    (tmp_path / "classes.txt").write_text("ape\nbee\ncat\n", encoding="utf-8")
    assert "2 columns of text beside label" in fault_of(tmp_path)
    splits = load(tmp_path, "--text-columns", "title", "body")
    for split in splits.values():
        assert split.classes == ("ape", "bee", "cat")
        for text, label in zip(split.texts, split.labels, strict=True):
            assert int(text.split()[1]) % 3 == label
            assert text.split() == ["title", text.split()[1], "body", text.split()[1]]


def test_ag_news_with_a_header_is_ag_news(tmp_path):
    """As it is sold elsewhere: the same rows, one line more. Same texts, labels, fingerprints."""
    from gpt2_quant.data.demo import write_ag_news
    from gpt2_quant.data.demo_corpus import generate_corpus

    rows = list(zip(*generate_corpus(300, seed=7), strict=True))
    for split, part in (("train", rows[:240]), ("test", rows[240:])):
        (tmp_path / "own").mkdir(exist_ok=True)
        write_ag_news(tmp_path / "own" / f"{split}.csv", part)
        (tmp_path / "sold").mkdir(exist_ok=True)
        lines = (tmp_path / "own" / f"{split}.csv").read_text(encoding="utf-8")
        head = "Class Index,Title,Description\n"
        (tmp_path / "sold" / f"{split}.csv").write_text(head + lines, encoding="utf-8")
    (tmp_path / "sold" / "classes.txt").write_text("World\nSports\nBusiness\nSci/Tech\n")
    columns = "--text-columns", "Title", "Description", "--label-column", "Class Index"
    own, sold = load(tmp_path / "own"), load(tmp_path / "sold", *columns)
    assert {n: s.sha256 for n, s in own.items()} == {n: s.sha256 for n, s in sold.items()}
    assert own["test"].classes == sold["test"].classes
    assert list(own["test"].texts) == read_csv(tmp_path / "own" / "test.csv")[0]


def test_real_ag_news_keeps_its_fingerprints(ag_news_dir, tmp_path):
    """The splits of the reference run, whose sha256 stand in its records."""
    root = Path(__file__).resolve().parents[2]
    record = json.loads((root / "results/records/baseline.json").read_text(encoding="utf-8"))
    splits = load_splits(
        settings_from(
            parser("").parse_args(
                ["--dataset", str(ag_news_dir), "--results-dir", str(tmp_path), "--device", "cpu"]
            )
        )
    )
    for name, split in splits.items():
        assert split.sha256 == record["splits"][name]["sha256"]


def test_cut_texts_are_counted_with_what_they_lose(tiny_tokenizer, tmp_path):
    texts, labels = rows_of(120)
    texts[5] = "word " * 500
    split = load(write_rows(tmp_path / "a.jsonl", texts, labels))["train"]
    whole = np.array([len(tiny_tokenizer(text)["input_ids"]) for text in split.texts])
    tokens = tokenize(tiny_tokenizer, split, 16)
    assert tokens.truncated == (whole > 16).sum() > 0
    assert tokens.truncated_tokens == (whole - 16).clip(0).sum()
    again = tokenize(tiny_tokenizer, split, 16)  # from the cache
    assert again.cut() == tokens.cut() and (again.flat == tokens.flat).all()


def test_shared_texts_are_counted_and_said(tmp_path, capsys):
    texts, labels = rows_of(200)
    write_rows(tmp_path / "train.csv", texts, labels)
    write_rows(tmp_path / "test.csv", [*texts[:7], "new"], [*labels[:7], labels[0]])
    splits = load(tmp_path)
    shared = splits["test"].facts["shared_texts"]
    assert sum(shared.values()) == 7
    assert "of the 8 test texts are in train, too" in capsys.readouterr().out


def parquet_of(path: Path, text: pyarrow.Array, label: pyarrow.Array) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"text": text, "label": label}), path)
    return path


BAD_BYTES = pyarrow.array([b"fine", b"caf\xe9"] * 50, pyarrow.binary())
TEXTS = pyarrow.array([f"text {i}" for i in range(100)])
LABELS = pyarrow.array([i % 2 for i in range(100)])
NULLS = [None] * 3 + [f"text {i}" for i in range(97)]
COLUMNS = {
    "null text": (pyarrow.array(NULLS), LABELS, "column text has no text in 3 of 100 rows"),
    "numeric text": (LABELS, LABELS, "column text holds int64, not text"),
    "list text": (pyarrow.array([["a"]] * 100), LABELS, "column text holds"),
    "not UTF-8": (
        pyarrow.Array.from_buffers(pyarrow.string(), 100, BAD_BYTES.buffers()),
        LABELS,
        "column text is not UTF-8",
    ),
    "null label": (TEXTS, pyarrow.array([None, *LABELS.to_pylist()[1:]]), "1 of 100 rows have no"),
    "label -1": (TEXTS, pyarrow.array([-1] * 4 + [0, 1] * 48), "4 of 100 rows have no label"),
    "float label": (TEXTS, pyarrow.array([0.5, 1.0] * 50), "holds double"),
    "list label": (TEXTS, pyarrow.array([[0]] * 100), "holds list"),
    "label not UTF-8": (
        TEXTS,
        pyarrow.Array.from_buffers(pyarrow.string(), 100, BAD_BYTES.buffers()),
        "column label is not UTF-8",
    ),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_of_another_kind(case, tmp_path):
    text, label, complaint = COLUMNS[case]
    path = parquet_of(tmp_path / "train.parquet", text, label)
    assert complaint in fault_of(path, "--text-columns", "text")


def train_and_test(folder: Path, train: list, test: list) -> Path:
    for split, labels in (("train", train), ("test", test)):
        write_rows(folder / f"{split}.csv", [f"{split} {i}" for i in range(len(labels))], labels)
    return folder


LABEL_FAULTS = {
    "test alone": (["a", "b"] * 50, ["a", "zebra"], "1 test rows have labels that train does not"),
    "blank": (["a", " "] * 50, ["a"], "' ' is no name for a class"),
    "control characters": (["a", "\x1b[31m"] * 50, ["a"], r"is no name for a class"),
    "an essay": (["a", "z" * 3000] * 50, ["a"], "1 to 200 printable letters"),
    "one class": (["a"] * 100, ["a"], "has one class only ('a')"),
    "gap": ([0, 1, 3] * 40, [0], "1 of 4 classes have no train rows (2)"),
    "fractions": ([0.5, 1.5] * 50, [0.5], "holds fractions such as 0.5"),
    "too many": (list(range(MOST_CLASSES + 1)) * 2, [0], "has 1,001 classes, more than 1,000"),
    "large numbers": ([3, 10**6] * 50, [3], "from 3 to 1000000: number the classes from 0"),
    "empty": (["a", "b", ""] * 40, ["a"], "40 of 120 rows have no label"),
}


@pytest.mark.parametrize("case", LABEL_FAULTS)
def test_labels_that_do_not_serve(case, tmp_path):
    *labels, complaint = LABEL_FAULTS[case]
    assert complaint in fault_of(train_and_test(tmp_path, *labels))


def test_a_named_class_without_rows_and_a_label_without_a_name(tmp_path):
    train_and_test(tmp_path, ["a", "b"] * 50, ["a"])
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert "1 of 3 classes have no train rows (c)" in fault_of(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nc\n")
    assert "50 train rows have labels that its list of class names" in fault_of(
        tmp_path, "--label-column", "label"
    )
    (tmp_path / "classes.txt").write_text("a\na\nb\n")
    assert "two classes the same name" in fault_of(tmp_path, "--text-columns", "text")


FILES = {
    "parquet by name": ("train.parquet", b"text,label\na,1\n", "cannot be read as its name says"),
    "CSV by name": ("train.csv", b"PAR1\x15\x04\x00\xff\xfe" * 40, "holds a NUL byte"),
    "a spreadsheet": ("train.csv", b"PK\3\4\x14\0 xl/workbook.xml", "is a spreadsheet or another"),
    "a pit": ("train.jsonl", b'{"text":' + b"[" * 100_000, "is nested too deep"),
    "another delimiter": ("train.csv", b"text;label\na;1\nb;2\n", "it has text;label: name it"),
    "an open quote": ("train.csv", b'text,label\n"a,1\nb,2\n', "as its name says"),
    "large numbers": ("train.csv", b"text,label\na,%d\nb,1\n" % 10**30, "more than 64 bits"),
    "a folder": ("train.csv/x.csv", b"text,label\na,1\nb,2\n", "holds no train.csv"),
    "mixed labels": (
        "train.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n',
        "column label holds",
    ),
    "JSON lines by name": ("train.jsonl", b"PAR1\x15\x04\x00\xff" * 40, "as its name says"),
    "one field too many": ("train.csv", b"text,label\na,1\nb,2,c\n", "as its name says"),
    "not UTF-8": ("train.csv", b"text,label\ncaf\xe9,1\nb,2\n", "as its name says"),
    "empty": ("train.jsonl", b"", "is empty"),
    "header alone": ("train.csv", b"text,label\n", "holds no rows"),
    "a column twice": ("train.csv", b"text,text,label\na,b,1\n", "two columns of one name"),
    "another ending": ("train.txt", b"text,label\na,1\n", "holds no train.csv, .tsv, .jsonl"),
    "empty texts": ("train.csv", b"text,label\na,1\n ,2\n,1\n", "2 of 3 rows have an empty text"),
    "all held out": ("train.csv", b"text,label\na,0\nb,1\n", "give more rows"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_do_not_serve(case, tmp_path):
    name, content, complaint = FILES[case]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    assert complaint in fault_of(tmp_path)


def test_a_column_that_is_not_there_and_the_label_as_a_text(tmp_path):
    path = write_rows(tmp_path / "a.csv", *rows_of(60))
    assert "no such column; it has text, label" in fault_of(path, "--label-column", "mood")
    assert "no such column; it has text, label" in fault_of(path, "--text-columns", "")
    assert "leave it out" in fault_of(path, "--text-columns", "label", "text")


def test_a_text_column_named_twice_and_a_header_with_a_number(tmp_path):
    path = write_rows(tmp_path / "twice.csv", *rows_of(60))
    assert "--text-columns text is named twice" in fault_of(path, "--text-columns", "text", "text")
    years = tmp_path / "years.csv"
    years.write_text("text,label,2020\n" + "".join(f"text {i},{i % 2},7\n" for i in range(60)))
    assert load(years, "--text-columns", "text")["train"].classes == ("0", "1")
    assert load(years)["train"].texts[0].startswith("text ")


def test_too_few_train_rows_for_two_classes(tmp_path):
    path = write_rows(tmp_path / "rows.csv", *rows_of(60))
    assert "leaves one class only of 3: give more" in fault_of(path, "--max-train-samples", "1")


@pytest.mark.e2e
def test_memory_stays_flat(tmp_path):
    """200,000 rows need less than 36 MB more than 50,000, whose texts are 45 MB shorter. What the
    system takes back when it likes is not counted: mapped pages, what allocators keep for later.
    """
    program = (
        "import ctypes, re, sys\nimport pyarrow\n"
        "from gpt2_quant.cli import parser, settings_from\n"
        "from gpt2_quant.data.datasets import load_splits\n"
        "splits = load_splits(\n"
        "    settings_from(parser('').parse_args(['--device', 'cpu', *sys.argv[1:]])))\n"
        "pyarrow.default_memory_pool().release_unused()\nctypes.CDLL(None).malloc_trim(0)\n"
        "print(re.search(r'RssAnon:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    held_kib = {}
    for n in (50_000, 200_000):
        texts = [f"{i} " + "some words and more " * 15 for i in range(n)]
        table = pyarrow.table({"text": texts, "label": [i % 5 for i in range(n)]})
        pyarrow.parquet.write_table(table, tmp_path / f"{n}.parquet", row_group_size=10_000)
        flags = ["--dataset", tmp_path / f"{n}.parquet", "--results-dir", tmp_path / "results"]
        command = [sys.executable, "-c", program, *map(str, flags)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        held_kib[n] = int(told.splitlines()[-1])
    assert held_kib[200_000] - held_kib[50_000] < 36 << 10
