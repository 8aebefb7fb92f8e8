"""Is everything there that a sweep needs? Each check gives findings; nothing is changed, and torch, ray and mlflow stay out."""
