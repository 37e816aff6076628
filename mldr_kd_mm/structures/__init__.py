"""Data types that data sets and models share."""
