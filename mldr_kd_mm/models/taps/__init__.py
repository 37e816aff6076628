"""Taps: the tensors of a model to record, and their layouts."""
