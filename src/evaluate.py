"""Plan episodes with a checkpoint: `python src/evaluate.py --help`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("evaluate")
