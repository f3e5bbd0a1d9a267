# syntax=docker/dockerfile:1

# docker build -t fulfilment .
# docker run -p 127.0.0.1:8080:8080 -v fulfilment:/data --read-only --tmpfs /tmp --stop-timeout 25 -e AUTH_OFF_I_KNOW=1 fulfilment
#
# The first stage has apt, pip and a shell, and gathers in /rootfs what can run; the last one is that and nothing else.
# docs/howto/deploy.rst says how large it is, and how that was measured.

FROM debian:bookworm-slim AS build
ENV DEBIAN_FRONTEND=noninteractive \
    LC_ALL=C.UTF-8 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
SHELL ["/bin/bash", "-o", "pipefail", "-euc"]
# binutils: strip takes the debugging symbols out of extension modules. No version is pinned: what Debian's stable
# release has today is what its security team has mended.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils ca-certificates python3-venv tzdata \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Its pip stays in an environment of its own: what is carried out below can run, and install nothing.
RUN python3 -m venv /opt/pip \
    && python3 -m venv --without-pip /opt/fulfilment
# The dependencies change less often than the code and so make a layer of their own: without the packages, this
# installs an empty fulfilment and all that it needs.
COPY LICENSE README.rst pyproject.toml setup.cfg ./
RUN /opt/pip/bin/pip --python /opt/fulfilment/bin/python install --no-compile '.[postgres]'
COPY app app
COPY bus bus
COPY config config
COPY modules modules
RUN /opt/pip/bin/pip --python /opt/fulfilment/bin/python install --no-compile --no-deps --force-reinstall .
COPY deploy/gather-rootfs deploy/gather-rootfs
RUN deploy/gather-rootfs /opt/fulfilment /rootfs

FROM scratch
ARG REVISION=unknown
LABEL org.opencontainers.image.title="fulfilment" \
      org.opencontainers.image.description="An order fulfilment backend" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /rootfs /
# Given away before it becomes a volume, which then starts out like it. 10001 belongs to nobody on the host.
COPY --from=build --chown=10001:10001 /rootfs-data /data

# HTTP_HOST: a container's loopback can be reached by nobody, so the server listens on every address. It then refuses
# to start until somebody has said who may call: AUTH=keys with API_KEYS_FILE, or AUTH_OFF_I_KNOW=1 where the network
# in front of it already decides that. The image does not decide it for you.
# PYTHONSAFEPATH: what lies in the working directory, a volume, is never imported.
# TMPDIR: with a read-only root only the volume can be written, unless there is a tmpfs on /tmp; SQLite and Python ask.
ENV PATH=/opt/fulfilment/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    TMPDIR=/data \
    DATABASE_URL=sqlite:////data/fulfilment.db \
    HTTP_HOST=0.0.0.0 \
    HTTP_PORT=8080
WORKDIR /data
VOLUME /data
EXPOSE 8080
USER 10001:10001
# SIGTERM drains for up to SHUTDOWN_GRACE_S (20): let the engine wait a little longer than that before it kills.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=6s --start-period=10s --retries=3 CMD ["python", "-m", "app", "check", "--live"]
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
