"""Collect runs into tables, pictures and one page: `python src/report.py --help`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("report")
