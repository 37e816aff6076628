"""Teacher: Swin-T on CIFAR-100 at 224 px, from timm's ImageNet weights.

    python -c "import timm, torch; model = timm.create_model(
        'swin_tiny_patch4_window7_224.ms_in1k', pretrained=True
    ); torch.save(model.state_dict(), 'swin-tiny.pth')"
    bash tools/dist_train.sh configs/teachers/swin-tiny_c100.py 4 \
        --cfg-options load_from=swin-tiny.pth

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows) and 4 GPUs. The first command
saves timm's ImageNet weights once; every layer except the head starts from them. The recipe is the
student's; how the published teachers were fine-tuned is unknown.
"""

_base_ = [
    '../_base_/models/swin-tiny.py',
    '../_base_/datasets/cifar100_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.swin_tiny
model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
