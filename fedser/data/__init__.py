"""Audio on disk → utterances → features → client splits."""
