"""Utilities that know nothing about distillation."""
