"""FitNet: the student's four stages predict the teacher's."""

stages = ['stage1', 'stage2', 'stage3', 'stage4']
method = dict(
    losses=[
        dict(
            loss=dict(type='FitNetLoss'), student=stages, teacher=stages, weight=1.0, name='fitnet'
        ),
    ]
)

search_space = {
    'model.losses.0.weight': dict(low=0.1, high=10.0, log=True),
}
