"""Gymnasium environments: their settings, and making them."""
