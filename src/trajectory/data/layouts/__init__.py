"""Layouts of data files: columns of any file and any names, told apart and cut into episodes."""
