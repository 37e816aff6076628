"""Figures of runs and the report page that shows them."""
