"""Clients, server and the messages between them."""
