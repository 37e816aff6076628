"""Teacher: Mixer-B/16 on Tiny-ImageNet at 224 px, from timm's ImageNet weights.

    python -c "import timm, torch; model = timm.create_model(
        'mixer_b16_224.goog_in21k_ft_in1k', pretrained=True
    ); torch.save(model.state_dict(), 'mixer-b16.pth')"
    bash tools/dist_train.sh configs/teachers/mixer-b16_tinyimagenet.py 4 \
        --cfg-options load_from=mixer-b16.pth

Requires Tiny-ImageNet in data/tiny-imagenet and 4 GPUs. The first command saves timm's ImageNet
weights once; every layer except the head starts from them. The recipe is the student's; how the
published teachers were fine-tuned is unknown.
"""

_base_ = [
    '../_base_/models/mixer-b16.py',
    '../_base_/datasets/tiny-imagenet_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.mixer_b16
model.num_classes = 200
model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
