"""Defences at inference."""
