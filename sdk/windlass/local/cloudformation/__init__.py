"""Stacks and change sets, each resource made through its service's own API."""
