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
