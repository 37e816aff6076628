"""Taps: where tensors of a model are recorded, and how they are laid out."""
