"""What users call: distill, export, report on models and configs."""
