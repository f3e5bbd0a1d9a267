# docker build -t fulfilment .
# docker run -p 127.0.0.1:8080:8080 -v fulfilment:/data --read-only --tmpfs /tmp --stop-timeout 25 -e AUTH_OFF_I_KNOW=1 fulfilment
#
# The first stage has apt, pip and a shell, and collects the files that the program needs in /rootfs; the final stage
# consists of those files only. docs/howto/deploy.rst gives its size and how it was measured.


# The base image by its digest, which names the same files for ever, on every architecture; deploy/pin-base-image writes the
# digest that the tag has today. There is no "syntax" line: it would fetch another image, by tag.
ARG BASE=debian:bookworm-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171
FROM ${BASE} AS build
ENV DEBIAN_FRONTEND=noninteractive \
    LC_ALL=C.UTF-8 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
SHELL ["/bin/bash", "-o", "pipefail", "-euc"]
# binutils: strip removes the debugging symbols of extension modules. Debian's packages have no pinned version and are
# upgraded, because the base keeps its digest while Debian publishes security fixes; apt checks their signatures. archives
# has the hash of each package for the list of parts.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get upgrade --yes \
    && apt-get install --yes --no-install-recommends binutils ca-certificates python3-venv tzdata \
    && mkdir /src \
    && { dpkg-query --show --showformat '${Package}:${Architecture}=${Version}\n' | xargs apt-cache show >/src/archives || true; } \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# pip and the tools have an environment of their own, so the environment that is copied below contains none of them. Each
# file is of a version in a lock file, and pip refuses one whose hash is not there.
COPY requirements/build.txt requirements/image.txt requirements/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --only-binary :all: --require-hashes -r requirements/build.txt \
    && python3 -m venv --without-pip /opt/fulfilment
# The dependencies change less often than the code, so they are a layer of their own. Without isolation, what has no wheel
# is built by the backend of the lock file, not by the newest one of the package index.
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --require-hashes --wheel-dir wheels -r requirements/image.txt \
    && sed -n 's/^\([a-z0-9.-]*==[^ ]*\) .*/\1/p' requirements/image.txt >wheels/names \
    && /opt/build/bin/pip --python /opt/fulfilment/bin/python install --no-compile --no-deps --no-index --find-links wheels \
        -r wheels/names
COPY LICENSE README.rst pyproject.toml setup.cfg ./
COPY app app
COPY bus bus
COPY config config
COPY modules modules
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --no-index --wheel-dir wheels . \
    && /opt/build/bin/pip --python /opt/fulfilment/bin/python install --no-compile --no-deps --no-index --find-links wheels \
        fulfilment
COPY deploy/gather-rootfs deploy/write_sbom.py deploy/
# Each file of the image has this modification time, so that the same sources and packages are the same layers.
ARG SOURCE_DATE_EPOCH=0
RUN deploy/gather-rootfs /opt/fulfilment /rootfs \
    && /opt/build/bin/python deploy/write_sbom.py /rootfs archives wheels requirements/image.txt \
    && find /rootfs /rootfs-data -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +

FROM scratch
ARG REVISION=unknown
LABEL org.opencontainers.image.title="fulfilment" \
      org.opencontainers.image.description="An order fulfilment backend" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="0.3.0.dev0" \
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
