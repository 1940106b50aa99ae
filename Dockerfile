# syntax=docker/dockerfile:1
# The server as an image.
#
#   docker build -t llm-grpc .                     CPU
#   docker build -t llm-grpc:cuda --target cuda .  CUDA 13, for a node with the NVIDIA container runtime
#
# Versions are those of the hash locks in requirements/. No torch, no compiler, no root, and nothing is
# written at run time: a read-only root file system is fine.

ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS wheels
WORKDIR /src
COPY requirements/build.txt requirements/
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY clients/python clients/python
COPY llm_grpc llm_grpc
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels ./clients/python .

FROM ${PYTHON_IMAGE} AS cpu-environment
COPY requirements/serve.txt /tmp/
RUN python -m venv /opt/llm-grpc \
 && /opt/llm-grpc/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r /tmp/serve.txt
COPY --from=wheels /wheels /tmp/wheels
RUN /opt/llm-grpc/bin/pip install --no-cache-dir --no-deps /tmp/wheels/*.whl

FROM ${PYTHON_IMAGE} AS cuda-environment
COPY requirements/cuda.txt /tmp/
RUN python -m venv /opt/llm-grpc \
 && /opt/llm-grpc/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r /tmp/cuda.txt
COPY --from=wheels /wheels /tmp/wheels
RUN /opt/llm-grpc/bin/pip install --no-cache-dir --no-deps /tmp/wheels/*.whl

FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin llm-grpc
ENV PATH=/opt/llm-grpc/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001:10001
# gRPC, AdminService (on loopback by default), Prometheus
EXPOSE 50051 50052 9464
# SIGTERM drains: see --drain-window-s and --drain-limit-s. Give `docker stop` more than both together.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["llm-grpc", "health"]
ENTRYPOINT ["llm-grpc"]
CMD ["serve"]

FROM runtime AS cuda
# What NVIDIA's container runtime brings in: CUDA's part of the driver, and NVML.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-environment /opt/llm-grpc /opt/llm-grpc

# The last stage is what a build without --target makes.
FROM runtime AS cpu
COPY --from=cpu-environment /opt/llm-grpc /opt/llm-grpc
