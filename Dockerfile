# Built by `make docker`, which lays out the context: build/docker.
ARG BASE=debian:12.12-slim@sha256:d5d3f9c23164ea16f31852f95bd5959aad1c5e854332fe00f7b3a20fcc9f635c
FROM ${BASE}
ARG VARIANT=cuda

COPY dependencies /opt/
RUN --mount=type=secret,id=ca --mount=type=secret,id=mirrors --mount=type=cache,target=/root/.cache/pip \
    /opt/convoy/image/install.sh dependencies "${VARIANT}"

ARG COMMIT=unknown
COPY convoy /opt/convoy/
RUN /opt/convoy/image/install.sh convoy "${VARIANT}" "${COMMIT}"

ARG LOCK=unknown
ARG NAVSIM=unknown
LABEL org.opencontainers.image.title="Convoy" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${COMMIT}" \
      convoy.variant="${VARIANT}" \
      convoy.lock="${LOCK}" \
      convoy.navsim="${NAVSIM}"

# `docker run --entrypoint python` and `docker exec` find the image's Python too.
ENV PATH=/opt/convoy/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONNOUSERSITE=1
ENTRYPOINT ["/opt/convoy/entrypoint/run.sh"]
CMD ["help"]
