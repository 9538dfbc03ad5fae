"""Import a model of a public implementation: `python src/import_checkpoint.py --help`."""

from trajectory.commands import start

if __name__ == "__main__":
    start("import_checkpoint")
