"""The Trajectory Transformer as an experiment framework; README.md says what it does."""

from trajectory.data.own import create_dataset
from trajectory.planning.agent import TrajectoryAgent

__all__ = ["TrajectoryAgent", "create_dataset"]
