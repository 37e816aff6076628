"""A pair and a method as two bases, with the project's own data, classes and student.

python train.py configs/dist_resnet.py
"""

_base_ = [
    'mldr_kd_mm::pairs/deit_to_mobilenet_c100.py',
    'mldr_kd_mm::_base_/methods/dist.py',
    'shapes.py',
]

data_preprocessor = dict(num_classes=_base_.shapes.num_classes)
train_dataloader = dict(
    batch_size=32, num_workers=0, dataset=dict(_delete_=True, **_base_.shapes.train)
)
val_dataloader = dict(
    batch_size=32, num_workers=0, dataset=dict(_delete_=True, **_base_.shapes.val)
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(topk=1)

# If you do not change the models, write: model = _base_.method
model = dict(
    **_base_.method,
    teacher=_base_.shapes.teacher,
    teacher_checkpoint=None,  # the path or URL of your teacher; this one has random weights
    student=dict(
        _delete_=True,
        type='TimmClassifier',
        model_name='resnet10t',
        num_classes=_base_.shapes.num_classes,
    ),
    input_size=(3, 64, 64),
)
train_cfg = dict(max_epochs=2)
