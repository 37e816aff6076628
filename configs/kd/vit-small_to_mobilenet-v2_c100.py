"""KD: ViT-S teaches MobileNetV2 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/kd/vit-small_to_mobilenet-v2_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/vit-small_c100.py trains.
Published: teacher 92.04, student alone 73.68, KD 72.77 (OFA-KD's paper, as others retell it); not
rerun by us.
"""

_base_ = ['../_base_/pairs/vit-small_to_mobilenet-v2_c100.py', '../_base_/methods/kd.py']

model = _base_.method
