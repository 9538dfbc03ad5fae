"""Train the policies that the built-in datasets are recorded from: `python src/train_behaviour.py --help`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("train_behaviour")
