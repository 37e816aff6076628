"""Measures of teacher and student beyond accuracy and loss."""
