"""Samplers trained on a model's prior predictive data, for posteriors in milliseconds."""
