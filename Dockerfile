# The whole graph in one image: Ray head, HAProxy, the Serve applications and the launcher that keeps them alive.
#
#     docker build --target cpu -t daarion-serve .
#     docker build --target gpu -t daarion-serve:gpu .
#     docker build --target cpu --build-arg MODELS=build -t daarion-serve:offline .   # needs no network at run time
#
# PostgreSQL and NATS run beside it, see docker-compose.yml. docs/operations.md tells what was tried and what was not.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- packages: a layer that only a changed lock file rebuilds -----------------------------------------------------------
FROM ${PYTHON_IMAGE} AS tools
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# libnuma1 is loaded by vLLM on a CPU, libseccomp2 by the sandbox of Python tools, whose strongest tier is bubblewrap.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bubblewrap libnuma1 libseccomp2 \
 && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 daarion \
 && useradd --uid 10001 --gid daarion --create-home --shell /usr/sbin/nologin daarion \
 && install --directory --owner daarion --group daarion --mode 0700 /data
WORKDIR /app

FROM tools AS cpu-packages
# Where pip finds torch's CPU build; without it the general build comes, with CUDA's libraries.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/ requirements/
COPY launcher/__init__.py launcher/install.py launcher/
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" python -m launcher.install cpu --packages-only

FROM tools AS gpu-packages
COPY requirements/ requirements/
COPY launcher/__init__.py launcher/install.py launcher/
RUN PIP_NO_CACHE_DIR=1 python -m launcher.install gpu --packages-only

# --- images: the packages and the repository, run by an ordinary user ----------------------------------------------------
FROM tools AS graph
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DAARION_DATA_DIR=/data \
    DAARION_HOST=0.0.0.0 \
    DAARION_PORT=8000
EXPOSE 8000
# The first start builds the models, the engine takes a minute more.
HEALTHCHECK --interval=15s --timeout=10s --start-period=15m --retries=3 CMD ["/app/docker/healthcheck.sh"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/app/docker/entrypoint.sh"]

FROM graph AS cpu
ENV DAARION_SERVE_CONFIG=/app/serve_config.yaml
COPY --from=cpu-packages /app/.venv .venv
COPY . .
RUN python3 -m launcher.install cpu && python3 -m compileall -q -x '/\.venv/' /app
USER 10001:10001
ARG MODELS=first-start
RUN if [ "${MODELS}" = build ]; then python -m modelbuild --data-dir /data; fi
# Last: what is written below a volume after its declaration may be lost. A new named volume begins with the image's content.
VOLUME /data

FROM graph AS gpu
ENV DAARION_SERVE_CONFIG=/app/configs/serve.gpu.yaml
# Triton compiles its kernels with the system's compiler.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc g++ libc6-dev \
 && rm -rf /var/lib/apt/lists/*
COPY --from=gpu-packages /app/.venv .venv
COPY . .
RUN python3 -m launcher.install gpu && python3 -m compileall -q -x '/\.venv/' /app
USER 10001:10001
ARG MODELS=first-start
RUN if [ "${MODELS}" = build ]; then python -m modelbuild --data-dir /data; fi
# Last: what is written below a volume after its declaration may be lost. A new named volume begins with the image's content.
VOLUME /data
