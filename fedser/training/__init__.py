"""What a client does in a round: objectives and the local epochs."""
