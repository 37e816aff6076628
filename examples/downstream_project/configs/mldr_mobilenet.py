"""A whole config inherited by path, with its own student for fewer classes.

python train.py configs/mldr_mobilenet.py
"""

_base_ = [
    __import__('mldr_kd_mm').config_path('mldr/deit_to_mobilenet_c100.py'),
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

model = dict(
    teacher=_base_.shapes.teacher,
    teacher_checkpoint=None,  # the path or URL of your teacher; this one has random weights
    student=dict(head=dict(num_classes=_base_.shapes.num_classes, topk=1)),
    input_size=(3, 64, 64),
)
train_cfg = dict(max_epochs=2)
