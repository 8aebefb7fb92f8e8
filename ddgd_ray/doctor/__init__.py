"""Checks of everything that a sweep needs. Each gives findings; nothing is changed, and torch, ray and mlflow stay out."""
