#!/bin/sh
# Builds the model folders where they are missing, then becomes the launcher, which ends on SIGTERM.
set -eu
cd /app
# NAME_FILE gives NAME, so that secrets can be mounted as files.
for name in DATABASE_URL DATABASE_OWNER_URL NATS_URL DAARION_INTERNAL_SECRET DAARION_ADMIN_SECRET OPENAI_API_KEY DEEPSEEK_API_KEY; do
    eval "file=\${${name}_FILE:-}"
    if [ -n "$file" ]; then
        value=$(cat "$file")
        export "$name=$value"
    fi
done
if [ "$#" -gt 0 ]; then
    exec "$@"
fi
python -m modelbuild --data-dir "$DAARION_DATA_DIR"
exec python -m launcher run --config "$DAARION_SERVE_CONFIG"
