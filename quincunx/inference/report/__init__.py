"""Fits and comparisons as one HTML page."""
