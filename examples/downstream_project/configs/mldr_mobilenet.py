"""A whole config with the project's data, as a lazy config.

python train.py configs/mldr_mobilenet.py
"""

from mmengine.config import read_base

with read_base():  # for configs of this project
    from .shapes import custom_imports  # noqa: F401

# Fields of mldr_kd_mm's configs. The data base comes last, so its fields replace those before it.
globals().update(
    __import__('mldr_kd_mm').base_fields(
        'mldr/deit_to_mobilenet_c100.py', __file__.replace('mldr_mobilenet', 'shapes')
    )
)

model.update(
    # DeiT-tiny instead of DeiT-small.
    teacher=dict(
        model['teacher'],
        backbone=dict(model['teacher']['backbone'], arch='deit-tiny', img_size=64),
        head=dict(model['teacher']['head'], num_classes=4, in_channels=192, topk=1),
    ),
    teacher_checkpoint=None,  # the path or URL of your teacher; this one has random weights
    student=dict(model['student'], head=dict(model['student']['head'], num_classes=4, topk=1)),
    input_size=(3, 64, 64),
)
train_cfg.update(max_epochs=2)
