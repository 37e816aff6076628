"""ConvNeXt-T teaches DeiT-T on ImageNet-1K at 224 px.

    bash tools/dist_train.sh configs/pairs/convnext-tiny_to_deit-tiny_in1k.py 8 --method dist

Requires ImageNet-1K in data/imagenet and 8 GPUs: the learning rate is for OFA-KD's ImageNet
batch size. timm downloads the teacher's weights; without network access, give a path or URL:

    --cfg-options model.teacher.pretrained=False model.teacher_checkpoint=PATH_OR_URL

This config has not been trained in this project.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/convnext-tiny.py',
    '../_base_/models/deit-tiny.py',
    '../_base_/datasets/imagenet_224_strong.py',
    '../_base_/schedules/transformer_300e_in1k.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.convnext_tiny, num_classes=1000, pretrained=True),
    teacher_checkpoint=None,
    student=dict(_base_.deit_tiny, num_classes=1000),
    input_size=(3, 224, 224),
)
