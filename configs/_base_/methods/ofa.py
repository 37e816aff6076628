"""OFA: its loss on the final and the four stages' logits, each with weight 1.

The stages go through MLDR-KD's neck without its gate, because the fusion is not used.
"""

method = dict(
    student_recorder=dict(type='FeatureRecorder', taps='stages'),
    neck=dict(type='MSDFNeck', gate_dim=0),
    losses=[
        dict(
            loss=dict(type='OFALoss', eps=1.0),
            student=['logits', 'stage_logits'],
            teacher='logits',
            weight=1.0,
            name='ofa',
        )
    ],
)

search_space = {
    'model.losses.0.weight': dict(low=0.03, high=3.0, log=True),
    'model.losses.0.loss.eps': dict(low=1.0, high=2.0),
}
