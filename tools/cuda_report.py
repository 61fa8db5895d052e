#!/usr/bin/env python3
"""Reads reports of the software CUDA device (SOFTCUDA_REPORT). --issues prints what the device complained of and fails if there is anything."""
import argparse
import json
import sys


def issues(paths):
    """Prints every complaint of the reports and returns how many there are."""
    count = launches = 0
    kernels = set()
    for path in paths:
        with open(path) as f:
            report = json.load(f)
        for issue in report["issues"]:
            count += 1
            print(json.dumps(issue), file=sys.stderr)
        count += max(0, report["errors"] + report["warnings"] - len(report["issues"]))
        kernels |= set(report["kernels"])
        launches += sum(k["launches"] for k in report["kernels"].values())
    print(f"software device: {len(kernels)} kernels, {launches} launches, {count} complaints")
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", nargs="+")
    parser.add_argument("--issues", action="store_true", required=True)
    args = parser.parse_args()
    sys.exit(issues(args.reports) > 0)


main()
