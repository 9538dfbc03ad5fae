"""Build the workspace of a Weights & Biases project: `python src/dashboard.py --help`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("dashboard")
