"""The recipe of transformer_300e.py for Vision Mamba: its state matrices are not decayed either."""

_base_ = 'transformer_300e.py'

# As the authors of Vim have it. A key may stand anywhere in a parameter's name: 'mixer.D' finds D_b
# too, and each finds the parameters of a student.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'A_log': dict(decay_mult=0.0),
            'A_b_log': dict(decay_mult=0.0),
            'mixer.D': dict(decay_mult=0.0),
            'pos_embed': dict(decay_mult=0.0),
            'cls_token': dict(decay_mult=0.0),
        }
    )
)
