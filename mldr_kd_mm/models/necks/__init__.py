"""Necks: more tensors for the losses to compare, computed from features of a student.

A neck is a module that is registered with ``MODELS``.

- ``forward(features)`` gets a list of the student's features: its stages, or all taps of a
  recorder that names no stages, in their order. A feature is a map (B, C, H, W) or tokens
  (B, [1 +] N, C).
- It returns a dict or a NamedTuple of name -> tensor. The names are free, and losses read the
  tensors by them. Three names have a meaning: ``stage_logits`` (S, B, C) counts as one head for
  each stage, ``fused_logits`` (B, C) appears in reports, and the means of ``fusion_weights``
  (B, S, C) are logged as ``fusion_<feature>``.
- The constructor arguments ``in_channels``, ``grids``, ``num_classes`` and ``project_dim`` receive
  what the models have, if the class takes them and the config does not set them. ``in_channels``
  has the width of each feature, and ``grids`` the (H, W) that its tokens stand for, or None for a
  map.

A neck is trained with the student and left out of its export.
"""

from mldr_kd_mm.models.necks.msdf import MSDFNeck, MSDFOutput

__all__ = ['MSDFNeck', 'MSDFOutput']
