"""A sweep while it runs: the live panel, and MLflow's own pages."""
