# nginx with Nchan from Debian's packages, for compose.yaml; the configuration is the cluster's.
ARG BASE
FROM ${BASE}
RUN apt-get update -q \
    && apt-get install -qy --no-install-recommends nginx-light libnginx-mod-nchan gettext-base \
    # The folders that Debian's nginx has compiled in: it looks for them even where others are told.
    && for name in body proxy fastcgi uwsgi scgi; do mkdir -p "/var/lib/nginx/$name"; done \
    && chown -R 65532:65532 /var/lib/nginx \
    && rm -rf /var/lib/apt/lists/*
COPY platform/gateway/nginx.conf.template /etc/nginx/gateway.template
USER 65532:65532
ENV NCHAN_MODULE=/usr/lib/nginx/modules/ngx_nchan_module.so RUN_FOLDER=/tmp ERROR_LOG=stderr \
    ACCESS_LOG="/dev/stdout attempts" WORKERS=1 WORKER_CONNECTIONS=4096 OPEN_FILES=8192 \
    MESSAGE_MEMORY=128M PING_SECONDS=25 SOCKET_SECONDS=960 FRAME_BYTES=256k
# envsubst is told the names: everything else with a dollar is nginx's own.
CMD envsubst "$(env | sed -n 's/^\([A-Z_]*\)=.*/${\1}/p' | tr '\n' ' ')" \
        < /etc/nginx/gateway.template > /tmp/nginx.conf \
    && exec nginx -e stderr -p /tmp -c /tmp/nginx.conf
