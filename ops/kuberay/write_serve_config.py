"""Writes the Serve configuration of the overlays: `make kuberay`.

`serveConfigV2` is what `make run` deploys: the Serve file with the `user_config` that each
application takes from configs/. It listens on all interfaces, because ingresses reach replicas in
other pods. No value is a secret: configuration names variables.
"""

import dataclasses
import sys
from pathlib import Path
from textwrap import indent

import yaml

from configs.environment import REPOSITORY, read_environment
from deployments.graph.config import deploy_config, with_live_config

OVERLAYS = REPOSITORY / "ops" / "kuberay" / "overlays"
SERVE_FILES = {"cpu": "serve_config.yaml", "gpu": "configs/serve.gpu.yaml"}
PATCH = """\
# Written by `make kuberay` from {source} and configs/: change those.
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: daarion
spec:
  serveConfigV2: |
"""


def patch(source: str) -> str:
    """Returns the patch of the RayService with the graph of the Serve file `source`.

    Raises:
        ConfigurationError: a file is wrong.
    """
    environment = dataclasses.replace(read_environment({}), host="0.0.0.0")  # noqa: S104
    config = with_live_config(deploy_config(REPOSITORY / source, environment))
    fields = config.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=100)
    return PATCH.format(source=source) + indent(text, "    ")


if __name__ == "__main__":
    into = Path(sys.argv[1]) if sys.argv[1:] else OVERLAYS
    for overlay, source in SERVE_FILES.items():
        (into / overlay / "serve.yaml").write_text(patch(source), encoding="utf-8")
