#!/bin/sh
# Ray starts this in place of HAProxy (RAY_SERVE_HAPROXY_BINARY_PATH). It edits the configuration that
# Ray rendered, then becomes HAProxy. Ray binds HAProxy's statistics and metrics to all interfaces;
# here they are bound to loopback. The ingress keeps its host. haproxy.sed holds the other edits.
# Written for Ray 2.60; tests/graph/test_ray_patches.py fails when the edited lines change.
previous=
for argument in "$@"; do
    if [ "$previous" = -f ]; then
        ports="${RAY_SERVE_HAPROXY_STATS_PORT:-8404}|${RAY_SERVE_HAPROXY_METRICS_PORT:-9101}"
        sed -i -E -e "s/^( *bind )\*?:($ports)\$/\1127.0.0.1:\2/" -f "$(dirname "$0")/haproxy.sed" "$argument"
    fi
    previous=$argument
done
exec "$DAARION_HAPROXY" "$@"
