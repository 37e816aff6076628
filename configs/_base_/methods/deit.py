"""DeiT's hard distillation: labels train the class head, the teacher's class the second head.

For students of timm with a distillation token, such as deit_tiny_distilled_patch16_224.
"""

method = dict(
    student_loss_weight=0.5,
    losses=[
        dict(
            loss=dict(type='HardKDLoss'),
            student='distillation_logits',
            teacher='logits',
            weight=0.5,
            name='deit',
        )
    ],
)

search_space = {
    'model.student_loss_weight': dict(low=0.1, high=1.0, log=True),
    'model.losses.0.weight': dict(low=0.1, high=1.0, log=True),
}
