"""What is measured of a teacher and a student beside accuracy and loss."""
