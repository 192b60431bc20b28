# The training container: trainer and syncd under supervisord.
#
# The default base covers RTX 4090, RTX 5090 and H100 and needs NVIDIA driver 580 or newer. For
# older drivers:  --build-arg BASE_IMAGE=pytorch/pytorch:2.1.0-cuda12.1-cudnn8-runtime
#
#   docker build -t eigen2 .
#   docker run --gpus all --shm-size=1g --stop-timeout 120 --env-file .env \
#       -v "$PWD/data:/workspace/eigen2/data:ro" eigen2 --resume --data data/market.csv
#
# No setting and no secret is part of the image: they come with `docker run`.
ARG BASE_IMAGE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
FROM ${BASE_IMAGE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# The package is called python3-venv whatever Python 3 the base has; an image that carries its own
# Python elsewhere (conda) brings venv with it and does not miss this one.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/*

ENV VENV_DIR=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /workspace/eigen2

# Packages first: they change less often than the code, and this layer is then used again. The
# environment sees the image's torch, and a constraint on its exact version keeps it.
COPY pyproject.toml start_vast.sh ./
COPY syncd/__init__.py syncd/
COPY syncd/container/gpu.sh syncd/container/packages.sh syncd/container/
COPY trainer/__init__.py trainer/
RUN bash start_vast.sh --install s3,gcs,azure,zstd,encrypt,trainer

COPY . .
# Any user may run it: docker run --user 1000
RUN install -d -m 1777 .syncd checkpoints logs data demo

STOPSIGNAL SIGTERM
HEALTHCHECK --interval=60s --timeout=30s --start-period=120s --retries=3 \
    CMD ["supervisorctl", "-c", "/workspace/eigen2/supervisord.conf", "sync"]

ENTRYPOINT ["bash", "/workspace/eigen2/start_vast.sh"]
CMD ["--resume"]
