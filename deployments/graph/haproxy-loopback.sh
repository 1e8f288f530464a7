#!/bin/sh
# Ray starts this in HAProxy's place (RAY_SERVE_HAPROXY_BINARY_PATH): it mends the rendered configuration, then becomes HAProxy.
# Ray's template binds HAProxy's statistics and metrics to all interfaces; they belong to this machine alone. The ingress
# keeps the host it was given. What else differs stands in haproxy.sed.
previous=
for argument in "$@"; do
    if [ "$previous" = -f ]; then
        ports="${RAY_SERVE_HAPROXY_STATS_PORT:-8404}|${RAY_SERVE_HAPROXY_METRICS_PORT:-9101}"
        sed -i -E -e "s/^( *bind )\*?:($ports)\$/\1127.0.0.1:\2/" -f "$(dirname "$0")/haproxy.sed" "$argument"
    fi
    previous=$argument
done
exec "$DAARION_HAPROXY" "$@"
