"""Pipelines: what a definition says, and executions of it."""
