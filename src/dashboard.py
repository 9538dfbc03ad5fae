"""Build the workspace of a Weights & Biases project: `python src/dashboard.py logger.project=NAME`.

Its panels are in `conf/dashboard.yaml`. What is sent is left as `workspace.json`; without a login nothing else happens.
"""

from trajectory.commands import start

if __name__ == "__main__":
    start("dashboard")
