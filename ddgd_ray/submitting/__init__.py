"""Files that give a sweep to a scheduler: Slurm, Kubernetes with KubeRay, or ray's own cluster launcher."""
