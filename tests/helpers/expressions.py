"""Prints, as JSON, what each expression of a list gives, or the line with which it is refused."""

from __future__ import annotations

import json
import sys

from trajectory import TrajectoryAgent
from trajectory.errors import UserError
from trajectory.names import locate

NAMES = {"TrajectoryAgent": TrajectoryAgent, "locate": locate}

if __name__ == "__main__":
    for code in json.loads(sys.argv[1]):
        try:
            print(json.dumps(eval(code, NAMES)))
        except UserError as error:
            print(json.dumps(f"refused: {error}"))
