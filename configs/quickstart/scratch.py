"""The quickstart's student alone: MobileNetV2 of quarter width on ten images of each digit.

    python tools/train.py configs/quickstart/scratch.py

Needs scikit-learn, which holds the images.
"""

_base_ = '../_base_/quickstart/student.py'

model = _base_.mobilenet_v2
