"""Write a model to a folder for others: `python src/export.py --help`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("export")
