"""The Distiller, its teacher and the comparisons between teacher and student."""
