"""Data types shared by data sets and models."""
