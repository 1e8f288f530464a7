"""The only room that imports ray: thin replicas, the builders of the applications, and the process that owns the graph."""

from deployments.graph.loopback import keep_on_loopback

keep_on_loopback()
