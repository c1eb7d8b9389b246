"""From audio files to normalised log-Mels."""
