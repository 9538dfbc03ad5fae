"""Measure what this machine needs for the parts of the framework: `python src/benchmark.py [benchmark.suites=[data]]`.

Prints tables as it goes and leaves all that was measured as `benchmark.json` in the run's folder, whose path is the
last line, and of planning a picture, `latency.png`.
"""

from trajectory.commands import start

if __name__ == "__main__":
    start("benchmark")
