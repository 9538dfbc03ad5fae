"""Record or load a dataset, train on it, plan with the result: `python src/train.py env=hopper`.

With `resume=true` it goes on where an earlier run of the same settings was ended.
"""

from trajectory.commands import start

if __name__ == "__main__":
    start("train")
