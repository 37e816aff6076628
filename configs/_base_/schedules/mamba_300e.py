"""The recipe transformer_300e.py for Vision Mamba, without weight decay on state matrices."""

_base_ = 'transformer_300e.py'

# As in the Vim authors' code. A key matches anywhere in a parameter's name: 'mixer.D' also matches
# D_b, and each key matches the parameters of a distilled student.
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
