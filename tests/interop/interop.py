#!/usr/bin/env python3
"""Two homeservers federate: every scenario between two servers over TLS with a private authority, with cuts and crashes between them.

usage: interop.py [--full] [--keep] [--only WORDS] MAKE MAKE

MAKE is a program in servers/ beside this file, or a path to one of the same kind (harness.py says which). Prints `ok` or `not ok` a scenario, and
ends with `N passed, M failed` and status 1 if one failed. Only the client-server API is used, so that what is found is what people would find.
"""

import argparse
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import joining  # noqa: F401 - lists its scenarios
import talking  # noqa: F401
import trouble  # noqa: F401
from client import Failed, Refused, Unreachable
from harness import Pair
from scenario import runs_of


def attempt(name, function, run):
    """Whether the scenario passed."""
    began = time.monotonic()
    try:
        function(run)
    except (Failed, Refused, Unreachable) as error:
        print(f"not ok {name}: {error}", flush=True)
        return False
    except Exception:
        print(f"not ok {name}: {traceback.format_exc()}", flush=True)
        return False
    print(f"ok {name} ({time.monotonic() - began:.1f} s)", flush=True)
    return True


def revive(pair):
    """A failed scenario may leave servers dead or the network cut."""
    pair.heal()
    for server in pair:
        if not server.is_running():
            print(f"# {server} was not running")
            server.start()


def tail(path, lines=25):
    return "".join(f"# {line}\n" for line in path.read_text(errors="replace").splitlines()[-lines:])


def main():
    arguments = argparse.ArgumentParser(usage=__doc__)
    arguments.add_argument("--full", action="store_true", help="the full sizes; minutes instead of seconds each")
    arguments.add_argument("--keep", action="store_true", help="keep the servers' data and logs")
    arguments.add_argument("--only", help="only scenarios whose name holds this")
    arguments.add_argument("make", nargs=2)
    arguments = arguments.parse_args()

    # Whoever ends this ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    pair = Pair(*arguments.make, Path(tempfile.mkdtemp(prefix="interop.")))
    passed = failed = 0
    try:
        pair.start()
        print(f"# {pair.a} and {pair.b}, {'full' if arguments.full else 'short'} form", flush=True)
        for name, function, run in runs_of(pair, arguments.full):
            if arguments.only and arguments.only not in name:
                continue
            if attempt(name, function, run):
                passed += 1
            else:
                failed += 1
                revive(pair)
        for server in pair:
            if not server.is_running():
                print(f"not ok {server} has ended on its own")
                failed += 1
    finally:
        pair.end()
        if failed or not passed:
            for server in pair:
                print(f"# --- last words of {server}\n{tail(server.log)}", end="")
        if arguments.keep:
            print(f"# kept: {pair.work}")
        else:
            pair.remove()
    print(f"{passed} passed, {failed} failed")
    sys.exit(0 if passed and not failed else 1)


if __name__ == "__main__":
    main()
