"""Ways in: they translate, authorise and call services, nothing else."""
