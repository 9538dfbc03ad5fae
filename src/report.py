"""Collect runs into tables, pictures and one page: `python src/report.py runs=outputs/train`.

Leaves `report.html`, `report.md`, `report.tex`, `report.json` and every picture as PNG and SVG in the run's folder;
the last line is the page's path.
"""

from trajectory.commands import start

if __name__ == "__main__":
    start("report")
