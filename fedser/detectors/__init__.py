"""Detectors of adversarial examples: learnt from clients' sums, worn beside a model in its evaluation."""
