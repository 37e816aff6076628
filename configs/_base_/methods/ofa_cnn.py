"""OFA with weight 0.1 for each stage, as its authors ran it for CNN students on CIFAR-100."""

_base_ = 'ofa.py'

method = _base_.method
method.losses[0].weight = [1.0, 0.1]
