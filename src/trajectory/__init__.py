"""Trajectory Transformer: offline reinforcement learning as sequence modelling."""

from trajectory.planning.agent import TrajectoryAgent

__all__ = ["TrajectoryAgent"]
