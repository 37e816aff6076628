"""MLDR-KD with DeepSpeed: ViT-L teaches ResNet101 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/sharded/vit-large_to_resnet101_c100_deepspeed.py 4

configs/mldr/vit-large_to_resnet101_c100.py, the optimizer in shards; docs/sharding.md says what of
that is tested. Not run by us.
"""

_base_ = [
    '../_base_/pairs/vit-large_to_resnet101_c100.py',
    '../_base_/methods/mldr.py',
    '../_base_/strategies/deepspeed.py',
]

model = _base_.method
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
