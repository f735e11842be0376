# The environment that `make` makes. The wheels of torch bring CUDA's libraries; the host needs NVIDIA's driver and
# container toolkit. For an image with CUDA's own tools: --build-arg BASE=nvidia/cuda:TAG-ubuntu24.04
#   docker build -t egspo . && docker run --gpus all -v "$PWD/runs:/egspo/runs" egspo train debug/sudoku
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends make bubblewrap $(command -v python3 >/dev/null || echo python3 python3-venv) \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /egspo
COPY . .
RUN make .venv/.installed && .venv/bin/pip install --no-cache-dir -c constraints.txt -e '.[data,quantization]'
ENV PATH=/egspo/.venv/bin:$PATH PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
ENTRYPOINT ["egspo"]
CMD ["--help"]
