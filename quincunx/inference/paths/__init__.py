"""Samplers on path space: from an easy law to a posterior in steps whose densities are known."""
