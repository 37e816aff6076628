"""Utilities that do not depend on distillation."""
