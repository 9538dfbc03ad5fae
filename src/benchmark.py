"""Measure what the parts of the framework need on this machine: `python src/benchmark.py --help`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("benchmark")
