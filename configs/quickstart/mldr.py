"""The quickstart's MLDR-KD: a small ViT teaches MobileNetV2 on ten images of each digit.

    python tools/train.py configs/quickstart/mldr.py

Requires scikit-learn, which contains the images, and the teacher that
configs/quickstart/teacher.py trains.
"""

_base_ = ['../_base_/quickstart/student.py', '../_base_/methods/mldr.py']

model = dict(
    **_base_.method,
    type='Distiller',
    teacher=_base_.deit_small,
    teacher_checkpoint='work_dirs/quickstart/teacher/epoch_40.pth',
    student=_base_.mobilenet_v2,
    input_size=(3, 16, 16),
)
