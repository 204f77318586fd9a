"""Curvature matrices as operators: one file per matrix, never built, only multiplied."""
