"""Train the policies that the built-in datasets are recorded from: `python src/train_behaviour.py env=walker2d`.

Needs the optional extra `behaviour`. Snapshots, their returns and the policies chosen among them land in the run's
folder.
"""

from trajectory.commands import start

if __name__ == "__main__":
    start("train_behaviour")
