"""The HTTP executor: POSTs a call to the tool's target, within its egress rules."""
