"""ConvNeXt-T teaches ResMLP-S12 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/pairs/convnext-tiny_to_resmlp-s12_tinyimagenet.py 4 \
        --method dist

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/convnext-tiny_tinyimagenet.py trains.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/convnext-tiny.py',
    '../_base_/models/resmlp-s12.py',
    '../_base_/datasets/tiny-imagenet_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.convnext_tiny, num_classes=200),
    teacher_checkpoint='work_dirs/convnext-tiny_tinyimagenet/epoch_300.pth',
    student=dict(_base_.resmlp_s12, num_classes=200),
    input_size=(3, 224, 224),
)
