"""Posteriors with trusted moments, written as Quincunx models."""
