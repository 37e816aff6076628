"""HCD: corrections of the teacher's logits from the student's four stages.

Third-hand and of low trust: after a study note about arXiv 2511.10942, without paper or code.
"""

stages = ['stage1', 'stage2', 'stage3', 'stage4']
method = dict(
    losses=[
        dict(
            loss=dict(type='HCDLoss', sub_logits=4, kl_weight=6.0),
            student=stages,
            teacher=['feature'] * 4,
            weight=1.0,
            name='hcd',
        )
    ]
)

search_space = {
    'model.losses.0.weight': dict(low=0.1, high=10.0, log=True),
    'model.losses.0.loss.kl_weight': dict(low=0.6, high=60.0, log=True),
}
