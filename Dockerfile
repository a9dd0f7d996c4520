# Not built here: continuous integration has neither Docker nor a GPU. What it names is compared with the project
# (tests/docs/test_installation.py); the image itself is untried.
#
#     docker build --tag gmpo .
#     docker run --rm --gpus all --shm-size 16g --volume "$PWD/runs:/workspace/runs" gmpo gmpo check --help
#
# Without a GPU: --build-arg CONSTRAINTS=cpu.txt --build-arg EXTRAS=ray,peft,hub
FROM python:3.11-slim

ARG CONSTRAINTS=cuda.txt
ARG EXTRAS=ray,vllm,peft,hub

# A compiler for Triton's kernels; make for the targets of the Makefile.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc g++ libc6-dev make git \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace/gmpo
COPY constraints constraints
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --constraint "constraints/${CONSTRAINTS}" ".[${EXTRAS}]"
COPY benchmarks benchmarks
COPY examples examples
COPY tests tests
COPY Makefile ./

WORKDIR /workspace
CMD ["gmpo", "--help"]
