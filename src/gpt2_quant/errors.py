"""How a script ends. Exit codes are a contract:

0    done
2    the input, the setup or a flag is at fault: one sentence on stderr, no traceback
1    a fault of this code: its traceback
130  interrupted; the same command goes on from what is complete

What the operating system refuses is the setup's fault. Libraries wrap its number in exceptions of
their own: it is looked for along the chain of causes.
"""

import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from errno import (
    EACCES,
    EDQUOT,
    EEXIST,
    EFBIG,
    EISDIR,
    EMFILE,
    ENAMETOOLONG,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
    EPIPE,
    EROFS,
)  # fmt: skip
from typing import NoReturn

MENDS = {
    "free space or name another folder": (ENOSPC, EDQUOT),
    "raise the limit of file sizes (ulimit -f) or name another folder": (EFBIG,),
    "change its permissions or name another folder": (EACCES, EPERM, EROFS),
    "move what is there out of the way, or name another folder": (
        ENOTDIR, EEXIST, EISDIR, ENOTEMPTY,
    ),
    "give a shorter name": (ENAMETOOLONG,),
    "raise the limit of open files (ulimit -n)": (EMFILE,),
    "it may have been removed meanwhile; give the same command again": (ENOENT,),
    "what is complete is kept; give the same command again": (EPIPE,),
}  # fmt: skip
LEAST_ADDRESS_SPACE = 19 * 10**8  # bytes: with less, torch's threads abort the process
NO_MEMORY = re.compile(
    "allocate memory|out of memory|bad_alloc|failed to map segment|start new thread"
    "|No executable batch size"
)


class UserError(Exception):
    """The user's fault: one sentence with its mend."""


def run(main: Callable[[], None]) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code: int | str | None = 0
    message = None
    try:
        _prepare()
        try:
            main()
        finally:
            sys.stdout.flush()
    except UserError as fault:
        code, message = 2, f"error: {fault}"
    except KeyboardInterrupt:
        code, message = 130, "interrupted: the same command goes on from what is complete"
    except Exception as fault:
        causes = [*_causes(fault)]
        place = next((cause.__notes__[0] for cause in causes if hasattr(cause, "__notes__")), None)
        said = next(filter(None, (_refusal(cause, place) for cause in causes)), None)
        if said is None:
            raise
        code, message = 2, f"error: {said}"
        try:
            sys.stdout.flush()
        except OSError:  # nobody reads it, and Python would try once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)


def _prepare() -> None:
    """What the shell handed on, made fit or refused."""
    os.environ["MPLBACKEND"] = "agg"  # Jupyter hands on its own, which may be missing here
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: the next file would take its number
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="replace")  # "±" on an ASCII terminal is "?"
    # They tell the user of optional parts they lack.
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for text in (*sys.argv, os.getcwd()):
        if text != text.encode("utf-8", "replace").decode():
            raise UserError(f"{text!a} is not UTF-8: give the folder another name")
    if 0 < resource.getrlimit(resource.RLIMIT_AS)[0] < LEAST_ADDRESS_SPACE:
        raise UserError("torch needs 2 GB of address space or more: raise the limit (ulimit -v)")
    if sys.flags.optimize > 1:
        raise UserError("transformers needs the docstrings that python -OO drops: unset it")
    if "WORLD_SIZE" in os.environ and "RANK" not in os.environ:
        mend = "start with accelerate launch, or unset it"
        raise UserError(f"WORLD_SIZE is set, but no launcher has set RANK: {mend}")


def _causes(fault: BaseException | None) -> Iterator[BaseException]:
    while fault:
        yield fault
        fault = fault.__cause__ or fault.__context__


def _refusal(fault: BaseException, place: str | None = None) -> str | None:
    """What the operating system refused at `place`, with its mend; None for any other fault."""
    number, text = getattr(fault, "errno", None), str(fault)
    # Rust (safetensors, tokenizers) and C++ have the number in their message only.
    if found := re.search(r"(?:os error|errno) (\d+)", text, re.IGNORECASE):
        number = number or int(found[1])
    if isinstance(fault, MemoryError) or number == ENOMEM or NO_MEMORY.search(text):
        return "memory is short: raise its limit (ulimit -v), or give a smaller --batch-size"
    if number is None or not isinstance(fault, OSError) and not found:
        return None
    mend = next((mend for mend, numbers in MENDS.items() if number in numbers), None)
    where = place or getattr(fault, "filename", None) or "the disk"
    where = "standard output" if number == EPIPE else where
    return f"{where}: {os.strerror(number)}; {mend or 'check the disk'}"
