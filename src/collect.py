"""Bring a dataset onto this machine and describe it: `python src/collect.py --help`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("collect")
