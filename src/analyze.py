"""Look into a trained model: `python src/analyze.py --help`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("analyze")
