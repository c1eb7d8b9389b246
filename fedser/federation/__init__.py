"""Clients, server and what carries messages between them."""
