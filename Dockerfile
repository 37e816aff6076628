# The command mldr-kd in a container; docs/installation.md shows how to build and run it.
#
#   CPU    docker build -t mldr-kd .
#   CUDA   docker build -t mldr-kd:cuda \
#              --build-arg BASE=pytorch/pytorch:2.7.1-cuda12.8-cudnn9-runtime .
ARG BASE=python:3.11-slim
FROM ${BASE}

# The compiler builds the kernel that makes DFRA faster on the CPU.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

COPY . /tmp/mldr_kd_mm
# PyTorch's image brings its CUDA build along, which satisfies the requirements. Elsewhere pip takes
# the CPU wheels of the additional index. The headless OpenCV needs no libGL.
ENV PIP_NO_CACHE_DIR=1 PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu \
        '/tmp/mldr_kd_mm[quickstart,onnx]' \
    && opencv=$(pip show opencv-python | sed -n 's/^Version: //p') \
    && pip uninstall --yes opencv-python \
    && pip install --no-deps "opencv-python-headless==$opencv" \
    && rm -rf /tmp/mldr_kd_mm

# Any user can run it. Downloaded weights are kept in the mounted folder.
ENV HOME=/tmp HF_HOME=/data/.cache/huggingface TORCH_HOME=/data/.cache/torch
WORKDIR /data
ENTRYPOINT ["mldr-kd"]
CMD ["--help"]
