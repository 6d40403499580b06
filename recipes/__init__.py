"""Recipes that ship with fresco: YAML files, no code."""
