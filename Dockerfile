# syntax=docker/dockerfile:1

# docker build -t fulfilment .
# docker run -p 127.0.0.1:8080:8080 -v fulfilment:/data --stop-timeout 25 -e AUTH_OFF_I_KNOW=1 fulfilment

ARG PYTHON=python:3.13-slim-bookworm

# hadolint ignore=DL3006
FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
# Its pip stays here: what is copied out below can run, and install nothing.
RUN python -m venv --without-pip /opt/fulfilment
# The dependencies change less often than the code and so make a layer of their own: without the packages, this
# installs an empty fulfilment and all that it needs.
COPY LICENSE README.rst pyproject.toml setup.cfg ./
RUN python -m pip --python /opt/fulfilment/bin/python install --no-compile .
COPY app app
COPY bus bus
COPY config config
COPY modules modules
# unchecked-hash: a copied file may get another time, and nobody could write the bytecode anew.
RUN python -m pip --python /opt/fulfilment/bin/python install --no-compile --no-deps --force-reinstall . \
    && /opt/fulfilment/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/fulfilment/lib

# hadolint ignore=DL3006
FROM ${PYTHON}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="fulfilment" \
      org.opencontainers.image.description="An order fulfilment backend" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
# 10001 belongs to nobody on the host. /data is given away before it becomes a volume, which then starts out like it.
# The shell goes last: whoever gets in finds neither it nor pip.
RUN groupadd --system --gid 10001 fulfilment \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin fulfilment \
    && install -d -o fulfilment -g fulfilment -m 0750 /data \
    && python -m pip uninstall --yes --root-user-action=ignore pip \
    && rm -rf /usr/local/lib/python3*/ensurepip \
    && rm -f /bin/bash /bin/dash /bin/rbash /bin/sh
COPY --from=build /opt/fulfilment /opt/fulfilment
COPY LICENSE /opt/fulfilment/LICENSE

# HTTP_HOST: a container's loopback can be reached by nobody, so the server listens on every address. It then refuses
# to start until somebody has said who may call: AUTH=keys with API_KEYS_FILE, or AUTH_OFF_I_KNOW=1 where the network
# in front of it already decides that. The image does not decide it for you.
# PYTHONSAFEPATH: what lies in the working directory, a volume, is never imported.
ENV PATH=/opt/fulfilment/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    DATABASE_URL=sqlite:////data/fulfilment.db \
    HTTP_HOST=0.0.0.0 \
    HTTP_PORT=8080
WORKDIR /data
VOLUME /data
EXPOSE 8080
USER 10001:10001
# SIGTERM drains for up to SHUTDOWN_GRACE_S (20): let the engine wait a little longer than that before it kills.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-m", "app", "check", "--live"]
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
