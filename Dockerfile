# One backend. The environment configures it (docs/config.md). All local state is in one volume, and may be lost.

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY obox ./obox
COPY metacache ./metacache
COPY fscache ./fscache
COPY admintool ./admintool
RUN pip install --no-cache-dir --prefix=/install '.[cluster]'

FROM python:3.12-slim
COPY --from=build /install /usr/local
RUN useradd --system --uid 10143 --no-create-home --home-dir /var/lib/obox --shell /usr/sbin/nologin obox \
    && install -d -o obox -g obox -m 0750 /var/lib/obox
USER obox
WORKDIR /var/lib/obox
VOLUME /var/lib/obox

# Only OBOX_STORAGE__URL is missing. [lmtp] trusted_networks says who may deliver: by default this container alone.
ENV PYTHONUNBUFFERED=1 \
    OBOX_STATE_DIR=/var/lib/obox \
    OBOX_AUTH__PASSWD_FILE=/var/lib/obox/users \
    OBOX_IMAP__LISTEN=0.0.0.0:1143 \
    OBOX_LMTP__LISTEN=0.0.0.0:1024 \
    OBOX_HTTP__LISTEN=0.0.0.0:8080 \
    OBOX_LOG__FORMAT=json

EXPOSE 1143 1024 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["obox"]
CMD ["serve"]
