"""The configuration: composed by Hydra, validated, resolved once."""
