"""Compare golden runs with what is on file, or write them anew, on purpose.

    python -m tests.golden [--write] [CASE ...]

There is a file for each kind of processor on which this was written; on another kind only shapes
and sums are compared, with the file most like it. Without `--write` nothing is changed, and the
exit code is 1 where anything differs. With it and names, those cases alone are written anew;
without names the whole file of the kind at hand.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from tests.golden import store
from tests.golden.results import CASES, result


def main() -> int:
    """Run, compare, perhaps write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--write", action="store_true", help="replace what is on file")
    options = parser.parse_args()
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    kind = store.machine_kind()
    file = store.load(kind)
    same = file["machine"] == kind
    if options.write and options.cases and not same:
        parser.error("there is no file of this kind of machine yet: write all cases")
    found, differing = {}, 0
    for name in options.cases or CASES:
        begin = time.process_time()
        found[name] = result(name)
        seconds = time.process_time() - begin
        known = file["cases"].get(name)
        lines = ["new"] if known is None else store.differences(known, found[name], same)
        differing += bool(lines)
        print(f"{name}: {seconds:.1f} s, {len(lines)} differences", flush=True)
        for line in lines[:20]:
            print(f"    {line}")
    if options.write:
        kept = {name: file["cases"][name] for name in CASES if name in file["cases"]}
        print(f"written: {store.save({**(kept if options.cases else {}), **found})}")
        return 0
    if not same:
        print(f"only shapes and sums were compared: {store.elsewhere(file)}")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
