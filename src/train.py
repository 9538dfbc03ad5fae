"""Record or load a dataset, train on it, plan with the result: `python src/train.py --help`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("train")
