"""Runs one command and records how it ended, even if its parent process has gone.

    python -IS supervise.py EXIT_FILE LOCK_FD NICE COMMAND...

Leads the job's process group. Holds LOCK_FD, as the command itself does: while the lock on it is
held, the job is alive. NICE: how far the command gives way to others. Only the standard library,
so that it costs little.
"""

import os
import signal
import subprocess
import sys
import time


def main() -> None:
    exit_file, lock, command = sys.argv[1], int(sys.argv[2]), sys.argv[4:]
    os.nice(int(sys.argv[3]))
    # Signals to the group are for the command. Handlers, since what is ignored stays so for it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    try:
        code = subprocess.Popen(command, pass_fds=(lock,)).wait()
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", file=sys.stderr, flush=True)
        code = 127
    partial = exit_file + ".tmp"
    try:
        with open(partial, "w") as file:
            file.write(str(code))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, exit_file)
    finally:
        # Workers that the command left behind would wait for it for ever.
        time.sleep(0.2)
        os.killpg(0, signal.SIGKILL)


main()
