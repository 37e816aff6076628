"""MLDR-KD: DFRA on the final, the four stages' and the fused logits, each with weight 1.

max_relation keeps training stable with few classes; mldr_paper.py is the paper's form without it.
"""

method = dict(
    student_recorder=dict(type='FeatureRecorder', taps='stages'),
    neck=dict(type='MSDFNeck'),
    losses=[
        dict(
            loss=dict(type='DFRALoss', temperature=1.0, alpha=2.0, max_relation=4.0),
            student=['logits', 'stage_logits', 'fused_logits'],
            teacher='logits',
            weight=1.0,
            name='dfra',
        )
    ],
)

search_space = {
    'model.losses.0.weight': dict(low=0.03, high=3.0, log=True),
    'model.losses.0.loss.temperature': dict(low=1.0, high=8.0, log=True),
}
