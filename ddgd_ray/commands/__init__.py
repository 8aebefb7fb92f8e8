"""What each command does. They import what they need when they run: --help and plan load no torch, ray or mlflow."""
