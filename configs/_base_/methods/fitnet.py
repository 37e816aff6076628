"""FitNet: the student's four stages predict the teacher's."""

stages = ['stage1', 'stage2', 'stage3', 'stage4']
method = dict(
    losses=[
        dict(loss=dict(type='FitNetLoss'), student=stages, teacher=stages, name='fitnet'),
    ]
)
