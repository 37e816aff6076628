"""MLDR-KD with FSDP: ViT-L teaches ResNet101 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/sharded/vit-large_to_resnet101_c100_fsdp.py 4

configs/mldr/vit-large_to_resnet101_c100.py with a sharded student. docs/sharding.md lists
what is tested. This config has not been trained in this project.
"""

_base_ = [
    '../pairs/vit-large_to_resnet101_c100.py',
    '../_base_/methods/mldr_paper.py',
    '../_base_/strategies/fsdp.py',
]

model = _base_.method
