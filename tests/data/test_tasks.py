"""Each task of the table against a hub on this machine that holds a data set of its real schema."""

import io

import pytest
from hub_server import Hub
from test_hub import answer_of, ask, one_sentence

from gpt2_quant.cli import TASKS, parser, settings_from

pytestmark = pytest.mark.e2e
EMOTIONS = ["sadness", "joy", "love", "anger", "fear", "surprise"]
DBPEDIA = [
    "Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder",
    "MeanOfTransportation", "Building", "NaturalPlace", "Village", "Animal", "Plant", "Album",
    "Film", "WrittenWork",
]  # fmt: skip
NEWS = ["World", "Sports", "Business", "Sci/Tech"]
# Columns in the order of the hub's files, class names, folder of the configuration, splits; the
# names of Banking77's classes do not matter, their number does.
SCHEMAS = {
    "ag_news": (["text", "label"], NEWS, "data", ("train", "test")),
    "imdb": (["text", "label"], ["neg", "pos"], "plain_text", ("train", "test", "unsupervised")),
    "dbpedia_14": (["label", "title", "content"], DBPEDIA, "dbpedia_14", ("train", "test")),
    "emotion": (["text", "label"], EMOTIONS, "split", ("train", "validation", "test")),
    "banking77": (["text", "label"], [f"intent_{i}" for i in range(77)], "data",
                  ("train", "test")),
}  # fmt: skip
READ = """
from gpt2_quant.cli import parser, settings_from
from gpt2_quant.data.datasets import load_splits
settings = settings_from(parser("").parse_args(FLAGS))
splits = load_splits(settings)
test = splits["test"]
print(json.dumps([test.texts[1], test.labels, test.classes, [*map(len, (s.texts for s in
splits.values()))], test.facts["notes"]]))
"""


def parquet(columns: list[str], names: list[str], rows: range, split: str) -> bytes:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({c: Value("string") for c in columns} | {"label": ClassLabel(names=names)})
    features = Features({c: features[c] for c in columns})
    values = {c: [f"{split} {c} {i}" for i in rows] for c in columns}
    values["label"] = [i % len(names) if split != "unsupervised" else -1 for i in rows]
    sink = io.BytesIO()
    Dataset.from_dict(values, features).to_parquet(sink)
    return sink.getvalue()


def repository(task: str) -> dict[str, bytes]:
    """Files as they lie on the hub: a card that names the configuration, and parquet per split."""
    columns, names, folder, splits = SCHEMAS[task]
    config = TASKS[task].config or "default"
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for split in splits:
        lines += [f"  - split: {split}", f"    path: {folder}/{split}-*"]
    if task == "emotion":  # its second configuration
        lines += ["- config_name: unsplit", "  data_files:"]
        lines += ["  - split: train", "    path: unsplit/train-*"]
    files = {"README.md": "\n".join([*lines, "---", ""]).encode()}
    for split in splits:
        rows = range(3 * len(names) * (20 if split == "train" else 1))
        files[f"{folder}/{split}-00000-of-00001.parquet"] = parquet(columns, names, rows, split)
    if task == "emotion":
        files["unsplit/train-00000-of-00001.parquet"] = parquet(columns, names, range(12), "train")
    return files


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_its_data_set_read_at_its_commit(task, tmp_path, monkeypatch):
    columns, names, _, splits = SCHEMAS[task]
    revision = TASKS[task].revision
    monkeypatch.setattr("hub_server.COMMIT", revision)
    flags = ["--task", task, "--device", "cpu", "--results-dir", str(tmp_path / "results")]
    with Hub({("datasets", TASKS[task].dataset): repository(task)}) as hub:
        done = ask(READ.replace("FLAGS", repr(flags)), tmp_path / "home", hub.url)
        text, labels, classes, sizes, notes = answer_of(done)
    assert text == " ".join(f"test {c} 1" for c in columns if c != "label")
    assert labels == [i % len(names) for i in range(3 * len(names))]
    assert classes == names and len(names) == TASKS[task].n_classes
    n_train = 60 * len(names)
    if "validation" in splits:
        assert sizes == [n_train, 3 * len(names), len(labels)] and notes == []
    else:
        assert sizes[0] + sizes[1] == n_train and 0 < sizes[1] < n_train / 5
        assert "there is no validation split" in notes[0] and len(notes) == 1
    assert any(revision in path for _, path in hub.asked)


def test_tasks_are_pinned_and_flags_go_before_them(tmp_path):
    for task in TASKS.values():
        assert len(task.revision) == 40 and set(task.revision) <= set("0123456789abcdef")

    def settings(*flags):
        return settings_from(parser("").parse_args(["--device", "cpu", *flags]))

    imdb = settings("--task", "imdb")
    assert (imdb.dataset, imdb.max_length) == ("stanfordnlp/imdb", 512)
    own = settings("--task", "imdb", "--dataset", str(tmp_path), "--max-length", "100")
    assert (own.dataset, own.dataset_revision, own.dataset_config) == (str(tmp_path), None, None)
    assert (own.max_length, own.text_columns, own.label_column) == (100, ("text",), "label")
    assert settings("--task", "ag_news").dataset_revision == settings().dataset_revision


@pytest.mark.parametrize(
    "flags, complaint",
    [
        ((), "with --dataset-config"),
        (("--dataset-config", "nosplit"), "with --dataset-config"),
        (("--dataset-config", "split", "--test-split", "dev"), "no dev split; it has train, valid"),
        (("--dataset-config", "split", "--label-column", "mood"), "it has text, label"),
        (("--task", "imdb", "--dataset-config", "split"), "--task imdb has 2 classes"),
    ],
)
def test_faults_of_a_hub_data_set_are_one_sentence(flags, complaint, tmp_path):
    flags = ["--dataset", "tester/moods", "--device", "cpu", *flags]
    flags += ["--results-dir", str(tmp_path / "results")]
    with Hub({("datasets", "tester/moods"): repository("emotion")}) as hub:
        done = ask(READ.replace("FLAGS", repr(flags)), tmp_path / "home", hub.url)
    assert complaint in one_sentence(done)


def test_a_data_set_that_is_a_program_is_not_run(tmp_path):
    flags = ["--dataset", "tester/moods", "--device", "cpu", "--results-dir", str(tmp_path)]
    with Hub({("datasets", "tester/moods"): {"moods.py": b"raise SystemExit"}}) as hub:
        done = ask(READ.replace("FLAGS", repr(flags)), tmp_path / "home", hub.url)
    assert "is a program, which is not run here" in one_sentence(done)
