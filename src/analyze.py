"""Look into a trained model: `python src/analyze.py analysis=attention checkpoint=outputs/.../last.ckpt`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("analyze")
