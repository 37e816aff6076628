"""The teacher: ConvNeXt-T on Tiny-ImageNet at 224 px, from timm's ImageNet weights.

    python -c "import timm, torch; model = timm.create_model(
        'convnext_tiny.fb_in1k', pretrained=True
    ); torch.save(model.state_dict(), 'convnext-tiny.pth')"
    bash tools/dist_train.sh configs/teachers/convnext-tiny_tiny.py 4 \
        --cfg-options load_from=convnext-tiny.pth

Needs Tiny-ImageNet in data/tiny-imagenet and 4 GPUs. The first command writes timm's ImageNet
weights to a file, once; all but the head is loaded from it. (pretrained=True does not do it:
mmpretrain initialises the model once more after timm has loaded it.) The recipe is the students';
how the published teachers were fine-tuned is not known to us.
"""

_base_ = [
    '../_base_/models/convnext-tiny.py',
    '../_base_/datasets/tiny-imagenet_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.convnext_tiny
model.num_classes = 200
model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
