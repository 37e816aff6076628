"""OFA with weight 0.1 for each stage, as its authors ran it for CNN students on CIFAR-100."""

_base_ = 'ofa.py'

method = _base_.method
method.losses[0].weight = [1.0, 0.1]

search_space = {
    '_delete_': True,
    'model.losses.0.weight.0': dict(low=0.1, high=10.0, log=True),
    'model.losses.0.weight.1': dict(low=0.01, high=1.0, log=True),
    'model.losses.0.loss.eps': dict(low=1.0, high=2.0),
}
