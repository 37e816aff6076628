"""Teacher: ViT-S (patch 8) on Tiny-ImageNet at 64 px, from timm's ImageNet weights.

    python -c "import timm, torch; model = timm.create_model(
        'vit_small_patch16_224.augreg_in21k_ft_in1k', pretrained=True, img_size=64, patch_size=8
    ); torch.save(model.state_dict(), 'vit-small_64px.pth')"
    bash tools/dist_train.sh configs/teachers/vit-small_tinyimagenet_64px.py 4 \
        --cfg-options load_from=vit-small_64px.pth

Requires Tiny-ImageNet in data/tiny-imagenet and 4 GPUs. The first command saves timm's ImageNet
weights once; every layer except the head starts from them. The recipe is the student's; how the
published teachers were fine-tuned is unknown. timm resizes the patch and position embeddings to
this model.
"""

_base_ = [
    '../_base_/models/vit-small_64px.py',
    '../_base_/datasets/tiny-imagenet_64_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.vit_small
model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
