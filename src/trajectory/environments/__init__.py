"""Gymnasium environments: which one, and how it is made."""
