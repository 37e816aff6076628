"""Where a model is tapped and how the tapped tensors are laid out."""
