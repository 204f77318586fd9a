"""Optimisers that use curvature: one file per method."""
