"""Bring a dataset onto this machine and describe it: `python src/collect.py env=hopper dataset.quality=expert`.

Records a built-in dataset, downloads a published one, imports your own episodes or looks at a D4RL file; all but the
last end in the local Minari store. Leaves a data card, a picture of what is in it, in the run's folder.
"""

from trajectory.commands import start

if __name__ == "__main__":
    start("collect")
