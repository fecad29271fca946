"""How a script ends. Exit codes are a contract:

0    done
2    the input, the setup or a flag is at fault: one sentence on stderr, no traceback
1    a fault of this code: its traceback
130  interrupted; the same command goes on from what is complete
"""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """The input, the setup or a flag is at fault; the message is one sentence that names the fault
    and the mend.
    """


_DISK_FAULTS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EFBIG,
}


def _disk_fault(fault: Exception) -> int | None:
    """The errno of a refusal by the disk, else None; safetensors, written in Rust, has it in its
    message only.
    """
    number = getattr(fault, "errno", None)
    if type(fault).__name__ == "SafetensorError" and (
        found := re.search(r"\(os error (\d+)\)", str(fault))
    ):
        number = int(found[1])
    return number if number in _DISK_FAULTS else None


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and end the process with the exit code that its outcome has by
    contract.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
        code = 0
    except UserError as fault:
        print(f"error: {fault}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from what is complete", file=sys.stderr)
        code = 130
    except Exception as fault:
        number = _disk_fault(fault)
        if number is None:
            raise
        where = getattr(fault, "filename", None) or "the disk"
        print(
            f"error: {where} cannot be written ({os.strerror(number)}): free space or name another folder",
            file=sys.stderr,
        )
        code = 2
    sys.stdout.flush()
    sys.exit(code)
