"""Where simulated clients run: on Ray, or one after the other in this process."""
