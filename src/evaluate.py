"""Plan with a checkpoint: `python src/evaluate.py checkpoint=outputs/.../last.ckpt planner.beam_width=32`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("evaluate")
