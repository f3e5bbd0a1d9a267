# syntax=docker/dockerfile:1

# docker build -t fulfilment .
# docker run -p 127.0.0.1:8080:8080 -v fulfilment:/data --read-only --tmpfs /tmp --stop-timeout 25 -e AUTH_OFF_I_KNOW=1 fulfilment
#
# The first stage has apt, pip and a shell, and collects the files that the program needs in /rootfs; the final stage
# consists of those files only. docs/howto/deploy.rst gives its size and how it was measured.

FROM debian:bookworm-slim AS build
ENV DEBIAN_FRONTEND=noninteractive \
    LC_ALL=C.UTF-8 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
SHELL ["/bin/bash", "-o", "pipefail", "-euc"]
# binutils: strip removes the debugging symbols of extension modules. No version is pinned: Debian's stable release has
# the current security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils ca-certificates python3-venv tzdata \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# pip has an environment of its own, so the environment that is copied below contains no pip.
RUN python3 -m venv /opt/pip \
    && python3 -m venv --without-pip /opt/fulfilment
# The dependencies change less often than the code, so they are a layer of their own. Each is the version of the lock file,
# and pip refuses a file whose hash is not in it.
COPY requirements/image.txt requirements/image.txt
RUN /opt/pip/bin/pip --python /opt/fulfilment/bin/python install --no-compile --require-hashes -r requirements/image.txt
COPY LICENSE README.rst pyproject.toml setup.cfg ./
COPY app app
COPY bus bus
COPY config config
COPY modules modules
RUN /opt/pip/bin/pip --python /opt/fulfilment/bin/python install --no-compile --no-deps .
COPY deploy/gather-rootfs deploy/gather-rootfs
RUN deploy/gather-rootfs /opt/fulfilment /rootfs

FROM scratch
ARG REVISION=unknown
LABEL org.opencontainers.image.title="fulfilment" \
      org.opencontainers.image.description="An order fulfilment backend" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /rootfs /
# The owner is set before the folder becomes a volume, which copies it. No user of the host has the id 10001.
COPY --from=build --chown=10001:10001 /rootfs-data /data

# HTTP_HOST: the loopback address of a container is not reachable from outside, so the server listens on every address. It
# then refuses to start without authentication: set AUTH=keys and API_KEYS_FILE, or AUTH_OFF_I_KNOW=1 if the network in
# front of it restricts access. The image has no default for this choice.
# PYTHONSAFEPATH: Python never imports from the working directory, which is a volume.
# TMPDIR: with a read-only root only the volume is writable, unless /tmp is a tmpfs; SQLite and Python need such a folder.
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
# SIGTERM starts a shutdown of at most SHUTDOWN_GRACE_S (20) seconds: the engine must wait a little longer before it kills.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=6s --start-period=10s --retries=3 CMD ["python", "-m", "app", "check", "--live"]
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
