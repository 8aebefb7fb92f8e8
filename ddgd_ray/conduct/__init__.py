"""A sweep under way: which job may start now, and what follows from one that has ended."""
