"""What runs leave behind, and what is kept in the cache."""
