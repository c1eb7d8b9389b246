"""Training on a client: objectives and the local epochs."""
