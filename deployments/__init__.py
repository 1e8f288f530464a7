"""The only room that imports ray: replicas, builders of applications, the process of the graph."""

from deployments.graph.ray_patches import keep_on_loopback

keep_on_loopback()
