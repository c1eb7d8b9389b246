"""Evaluation: protocols carried out on a trained model, their results and records."""
