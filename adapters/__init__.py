"""Adapters: what fresco knows about model families and third-party techniques."""
