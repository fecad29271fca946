"""Fine-tuning speed: this repository's training step against transformers' Trainer, same rows,
batch, updates, machine.

  python benchmarks/bench_training.py --base-model FOLDER --dataset FOLDER  # ends after --minutes
  python benchmarks/bench_training.py --updates 200 --seeds 0 --variants ours trainer_best
  torchrun --nproc-per-node 2 benchmarks/bench_training.py --worker ours --batch-size 64  # 2 GPUs

Every variant trains in a process of its own, so that its cold wall time (imports, tokenizing,
compiling, training, no evaluation) and its peak memory (of the first training) are its own. ms an
update is the time after the first third of the updates, from idle device to idle device, of the
fastest seed; without our first batch of a length, which is captured as a graph. Accuracy is on the
validation split, mean and deviation over seeds: speed that costs accuracy would show there. `ours`
and `trainer_default` train once a seed, the other two with the first one only. What is not finished
after --minutes is given up, and what fails is named with its fault; the rest stands.

The floor is what the update cannot do without on this machine, from ceilings measured here: bytes
that AdamW must move (28 a parameter in the blocks) over the rate of a large copy, plus 6 x
parameters x real tokens operations over the rate of a large bf16 product.

Prints a table, and as the last line the same as JSON.
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time

STARTED = time.perf_counter()

from training_peers import EVERY_SEED, VARIANTS, prepare, train_ours, train_trainer, wait  # noqa: E402

from gpt2_quant import cli as common  # noqa: E402
from gpt2_quant.errors import UserError, run  # noqa: E402


def flags():
    parser = common.parser(__doc__)
    add = parser.add_argument_group("benchmark flags").add_argument
    # fmt: off
    add("--updates", type=common.positive_int, default=300, metavar="N",
        help="updates a training (default: 300)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N",
        help="trainings a variant, see above (default: 0 1 2)")
    add("--learning-rate", type=float, default=5e-5, metavar="RATE",
        help="peak rate, for all (default: 5e-5)")
    add("--variants", nargs="+", choices=sorted(VARIANTS), default=list(VARIANTS),
        help="which to run (default: all)")
    add("--minutes", type=float, default=3.8, metavar="MIN",
        help="end of the whole (default: 3.8; a CPU takes longer)")
    add("--worker", choices=sorted(VARIANTS),
        help="run one variant in this process and print its JSON")
    # fmt: on
    return parser.parse_args()


def worker(args) -> None:
    """Train one variant once a seed, and print what is known of it as JSON after each.

    The first training's wall time, from the start of the process, is the cold one.
    """
    settings, base, tokenizer, train, validation = prepare(args)
    from gpt2_quant.measure.predictions import predict

    on_gpu, options = settings.device == "cuda", VARIANTS[args.worker][1]
    row = {"variant": args.worker, "seeds": [], "ms_per_update": [], "accuracy": []}
    row["tokens_per_update"] = float(train.lengths.mean()) * settings.batch_size
    for seed in args.seeds if args.worker in EVERY_SEED else args.seeds[:1]:
        arguments = (args, settings, base, tokenizer, train, seed)
        if options is None:
            model, seconds, timed = train_ours(*arguments)
        else:
            model, seconds, timed = train_trainer(*arguments, options)
        if not row["seeds"]:
            row["cold_wall_s"] = wait(settings.device) - STARTED
            row["peak_memory_bytes"] = peak_memory_bytes(on_gpu)
            row["parameters"] = count_parameters(model)
            row |= ceilings() if on_gpu else {}
        row["seeds"].append(seed)
        row["ms_per_update"].append(1000 * seconds / timed)
        words = f"{args.worker}, seed {seed}"
        logits = predict(model.eval(), validation, 64, tokenizer.pad_token_id, words)
        row["accuracy"].append(float((logits.argmax(1) == validation.labels).mean()))
        row["tokens_per_s"] = 1000 * row["tokens_per_update"] / min(row["ms_per_update"])
        if on_gpu:
            seconds = 28 * row["parameters"] / row["bytes_per_s"]
            operations = 6 * row["parameters"] * row["tokens_per_update"]
            row["floor_ms"] = 1000 * (seconds + operations / row["operations_per_s"])
            row["share_of_floor"] = row["floor_ms"] / min(row["ms_per_update"])
        print(json.dumps(row), flush=True)
        del model


def peak_memory_bytes(on_gpu: bool) -> int:
    """Of the GPU what tensors took; of a CPU what the whole process did."""
    import torch

    if on_gpu:
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # which Linux counts in KiB


def count_parameters(model) -> int:
    """Parameters that a token passes through: the blocks'."""
    return sum(p.numel() for name, p in model.named_parameters() if ".h." in name)


def ceilings() -> dict:
    """Bytes a second of a large copy (read plus written) and operations a second of an 8192³ bf16
    product, measured.
    """
    import torch

    def seconds(work, n=10) -> float:
        work()
        start = wait("cuda")
        for _ in range(n):
            work()
        return (wait("cuda") - start) / n

    a = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    b = torch.empty_like(a)
    m, n, o = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    return {
        "bytes_per_s": 2 * a.numel() / seconds(lambda: b.copy_(a)),
        "operations_per_s": 2 * 8192**3 / seconds(lambda: torch.mm(m, n, out=o)),
    }


def main() -> None:
    args = flags()
    if args.worker:
        worker(args)
        return
    if args.updates < 3:
        fault = f"--updates {args.updates} leaves too few to time after the first third"
        raise UserError(f"{fault}: give 3 or more")
    end, results = STARTED + 60 * args.minutes, []
    for name in args.variants:
        print(f"{name}: {VARIANTS[name][0]}", file=sys.stderr, flush=True)
        results.append(run_worker(name, end - time.perf_counter()))
        print(line(results[-1]), flush=True)
    timed = [row for row in results if "ms_per_update" in row]
    baseline = next((row for row in timed if row["variant"] == "trainer_default"), None)
    for row in timed if baseline else []:
        row["times_trainer_default"] = min(baseline["ms_per_update"]) / min(row["ms_per_update"])
    from gpt2_quant.records import provenance

    where = provenance(common.settings_from(args).device, args.seeds[0])
    wall_s = time.perf_counter() - STARTED
    found = {"provenance": where, "updates": args.updates, "wall_s": wall_s, "results": results}
    print(json.dumps(found))
    if any("fault" in row for row in results):
        sys.exit(1)


def run_worker(name: str, seconds: float) -> dict:
    """What a variant in a process of its own printed last about itself; `fault` says what ended it
    early, if anything did.
    """
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
    environment = {**os.environ, "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    # In a session of its own, so that a kill reaches the processes that compile for it too.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        output, fault = process.communicate(timeout=max(1, seconds))[0], None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, fault = process.communicate()[0], "no time left"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    row = {"variant": name}
    for text in output.splitlines():
        if text.startswith('{"variant"'):
            row |= json.loads(text)
    if process.returncode and "fault" not in row:
        row["fault"] = fault or f"exit code {process.returncode}"
    return row


def line(row: dict) -> str:
    """A row for a person."""
    title = f"{VARIANTS[row['variant']][0]:56s}"
    if "ms_per_update" not in row:
        return f"{title} failed: {row['fault']}"
    accuracy = f"accuracy {statistics.mean(row['accuracy']):.4f}"
    accuracy += f" ± {statistics.stdev(row['accuracy']):.4f}" if len(row["accuracy"]) > 1 else ""
    share = f"  {100 * row['share_of_floor']:3.0f}% of floor" if "share_of_floor" in row else ""
    fault = f"  then: {row['fault']}" if "fault" in row else ""
    gib = row["peak_memory_bytes"] / 2**30
    return (
        f"{title} {min(row['ms_per_update']):8.2f} ms  cold {row['cold_wall_s']:6.1f} s  "
        f"{row['tokens_per_s']:10,.0f} tokens/s  {gib:5.1f} GiB  "
        f"{accuracy}, n = {len(row['seeds'])}{share}{fault}"
    )


def tell_and_raise() -> None:
    """`main`; a worker's fault goes to the parent as a row too."""
    try:
        main()
    except Exception as fault:
        if "--worker" in sys.argv:
            name = sys.argv[sys.argv.index("--worker") + 1]
            said = (str(fault).strip() or "no message").splitlines()[0]
            row = {"variant": name, "fault": f"{type(fault).__name__}: {said}"}
            print(json.dumps(row), flush=True)
        raise


if __name__ == "__main__":
    run(tell_and_raise)
