"""How a script ends. Exit codes are a contract:

0    done
2    the input, the setup or a flag is at fault: one sentence on stderr, no traceback
1    a fault of this code: its traceback
130  interrupted; the same command goes on from what is complete
"""

import os
import re
import signal
import sys
from collections.abc import Callable
from errno import EACCES, EDQUOT, EFBIG, ENOSPC, ENOTDIR, EPERM, EROFS
from typing import NoReturn

DISK_FAULTS = {EACCES, EDQUOT, EFBIG, ENOSPC, ENOTDIR, EPERM, EROFS}


class UserError(Exception):
    """The user's fault: one sentence with its mend."""


def _errno_of(fault: Exception) -> int | None:
    # safetensors (Rust) has the number in its message only.
    if type(fault).__name__ == "SafetensorError":
        found = re.search(r"\(os error (\d+)\)", str(fault))
        return int(found[1]) if found else None
    return getattr(fault, "errno", None)


def run(main: Callable[[], None]) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code, message = 0, None
    try:
        main()
    except UserError as fault:
        code, message = 2, f"error: {fault}"
    except KeyboardInterrupt:
        code, message = 130, "interrupted: the same command goes on from what is complete"
    except Exception as fault:
        number = _errno_of(fault)
        if number not in DISK_FAULTS:
            raise
        where = f"{getattr(fault, 'filename', None) or 'the disk'} cannot be written"
        mend = "free space or name another folder"
        code, message = 2, f"error: {where} ({os.strerror(number)}): {mend}"
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)
