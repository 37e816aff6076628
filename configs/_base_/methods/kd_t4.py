"""KD at temperature 4, the classic setting for CIFAR."""

_base_ = 'kd.py'

method = _base_.method
method.losses[0].loss.temperature = 4.0
