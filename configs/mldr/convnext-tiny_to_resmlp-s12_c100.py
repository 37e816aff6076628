"""MLDR-KD: ConvNeXt-T teaches ResMLP-S12 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/convnext-tiny_to_resmlp-s12_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/convnext-tiny_c100.py trains.
Published: teacher 88.41, student alone 66.56, OFA-KD 81.22 (its paper, as others retell it, and
sources disagree), MLDR-KD none; not rerun by us.
"""

_base_ = ['../_base_/pairs/convnext-tiny_to_resmlp-s12_c100.py', '../_base_/methods/mldr.py']

model = _base_.method
