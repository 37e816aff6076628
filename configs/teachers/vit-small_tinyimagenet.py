"""Teacher: ViT-S on Tiny-ImageNet at 224 px, from timm's ImageNet weights.

    python -c "import timm, torch; model = timm.create_model(
        'vit_small_patch16_224.augreg_in21k_ft_in1k', pretrained=True
    ); torch.save(model.state_dict(), 'vit-small.pth')"
    bash tools/dist_train.sh configs/teachers/vit-small_tinyimagenet.py 4 \
        --cfg-options load_from=vit-small.pth

Requires Tiny-ImageNet in data/tiny-imagenet and 4 GPUs. The first command saves timm's ImageNet
weights once; every layer except the head starts from them. The recipe is the student's; how the
published teachers were fine-tuned is unknown.
"""

_base_ = [
    '../_base_/models/vit-small.py',
    '../_base_/datasets/tiny-imagenet_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.vit_small
model.num_classes = 200
model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
