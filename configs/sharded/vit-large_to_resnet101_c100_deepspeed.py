"""MLDR-KD with DeepSpeed: ViT-L teaches ResNet101 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/sharded/vit-large_to_resnet101_c100_deepspeed.py 4

configs/mldr/vit-large_to_resnet101_c100.py with a sharded optimizer state. docs/sharding.md lists
what is tested. This config has not been trained in this project.
"""

_base_ = [
    '../pairs/vit-large_to_resnet101_c100.py',
    '../_base_/methods/mldr_paper.py',
    '../_base_/strategies/deepspeed.py',
]

model = _base_.method
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
