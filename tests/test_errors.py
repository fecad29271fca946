"""How a script ends: every refusal of the operating system in one sentence, whatever wrapped it.

Each case is a process of its own with a few lines in place of a script: none of it needs torch.
"""

import os
import resource
import subprocess
import sys

import pytest
from tiny_models import ROOT

PROGRAM = """
import json, os, sys
from pathlib import Path
from gpt2_quant.errors import UserError, run
def main():
    {}
run(main)
"""
SAVE = "from gpt2_quant.records import write_json; write_json(Path({!r}), [1])"


def end_of(line: str, *arguments, **options) -> subprocess.CompletedProcess:
    """Run `line` as the body of a script's main()."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **options.pop("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    program = [sys.executable, "-c", PROGRAM.format(line), *arguments]
    return subprocess.run(program, text=True, env=environment, **options)


def sentence(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


WRAPPED = {
    "rust": "raise Exception('No space left on device (os error 28)')",
    "arrow": "raise OSError(28, 'Error writing bytes')",
    "cause": "raise RuntimeError('cannot save') from OSError(28, 'full')",
    "context": "\n    try: raise OSError(28, 'full')\n    finally: raise KeyError('cleaning up')",
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_full_disk_is_told_whatever_wraps_it(name):
    assert "No space left on device; free space" in sentence(end_of(WRAPPED[name]))


@pytest.mark.parametrize(
    "line",
    ["raise MemoryError", 'raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory")'],
)
def test_too_little_memory(line):
    assert "memory is short" in sentence(end_of(line))


def test_too_little_address_space_is_told_before_torch_aborts():
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    assert "ulimit -v" in sentence(end_of("pass", preexec_fn=limit))


def test_a_fault_of_this_code_keeps_its_traceback():
    for line in ("raise KeyError('x')", "raise FileNotFoundError('a step wrote nothing')"):
        done = end_of(line)
        assert done.returncode == 1 and "Traceback" in done.stderr


def test_what_stands_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        "file/record.json": "move what is there out of the way",
        "loop/record.json": "error: ",
        "a" * 256: "give a shorter name",
    }
    for name, mend in cases.items():
        assert mend in sentence(end_of(SAVE.format(str(tmp_path / name))))
    assert "Is a directory" in sentence(end_of(f"open({str(tmp_path / 'folder')!r}, 'a')"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "loop"]


def test_a_limit_of_file_size_leaves_nothing_half_written(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))

    done = end_of(SAVE.format(str(tmp_path / "record.json")), preexec_fn=limit)
    assert "ulimit -f" in sentence(done) and not list(tmp_path.iterdir())


def test_output_that_cannot_be_written_or_is_read_no_more():
    print_much = "print('line\\n' * 100_000)"
    with open("/dev/full", "w") as full:
        assert "No space left" in sentence(end_of(print_much, stdout=full))
    read, write = os.pipe()
    os.close(read)
    assert "Broken pipe" in sentence(end_of("print('line')", stdout=write))
    os.close(write)


def test_closed_output_and_an_ascii_terminal_are_no_fault():
    closed = end_of("print('line')", preexec_fn=lambda: os.close(1))
    assert (closed.returncode, closed.stderr) == (0, "")
    plain = end_of("print('0.9 ± 0.1')", env={"PYTHONIOENCODING": "ascii"})
    assert (plain.returncode, plain.stdout) == (0, "0.9 ? 0.1\n")


def test_what_the_shell_hands_on():
    backend = "module://matplotlib_inline.backend_inline"
    asked = "print(os.environ['MPLBACKEND'])"
    assert end_of(asked, env={"MPLBACKEND": backend}).stdout == "agg\n"
    assert "UTF-8" in sentence(end_of("pass", b"results\xff"))
    assert "unset it" in sentence(end_of("pass", env={"PYTHONOPTIMIZE": "2"}))
    assert "accelerate launch" in sentence(end_of("pass", env={"WORLD_SIZE": "2"}))


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "link").symlink_to("large disk")
    line = "from gpt2_quant.records import atomic_path"
    line += f"\n    with atomic_path(Path({str(tmp_path / 'link')!r})) as new:"
    line += "\n        new.mkdir(); (new / 'weights').touch()"
    assert end_of(line).returncode == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "large disk" / "weights").exists()
    assert len(list(tmp_path.iterdir())) == 2
