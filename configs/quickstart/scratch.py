"""The quickstart's student alone: quarter-width MobileNetV2 on ten images of each digit.

    python tools/train.py configs/quickstart/scratch.py

Requires scikit-learn, which contains the images.
"""

_base_ = '../_base_/quickstart/student.py'

model = _base_.mobilenet_v2
