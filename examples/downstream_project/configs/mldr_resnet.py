"""A whole config inherited by name, with another data set and student in place of its own.

python train.py configs/mldr_resnet.py
"""

_base_ = 'mldr_kd_mm::mldr/deit_to_mobilenet_c100.py'

# Fields of a base are merged with those here. _delete_=True replaces them whole instead; otherwise
# the data set would get arguments of CIFAR-100's.
shapes = __import__('mldr_kd_mm').base_fields('{{ fileDirname }}/shapes.py')
custom_imports = shapes['custom_imports']
data_preprocessor = dict(_delete_=True, **shapes['data_preprocessor'])
train_dataloader = dict(_delete_=True, **shapes['train_dataloader'])
val_dataloader = test_dataloader = dict(_delete_=True, **shapes['val_dataloader'])
val_evaluator = test_evaluator = dict(_delete_=True, **shapes['val_evaluator'])

model = dict(
    # DeiT-tiny instead of DeiT-small.
    teacher=dict(
        backbone=dict(arch='deit-tiny', img_size=64),
        head=dict(num_classes=4, in_channels=192, topk=1),
    ),
    teacher_checkpoint=None,  # the path or URL of your teacher; this one has random weights
    student=dict(_delete_=True, type='TimmClassifier', model_name='resnet10t', num_classes=4),
    input_size=(3, 64, 64),
)
train_cfg = dict(max_epochs=2)
