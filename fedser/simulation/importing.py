"""Imported first by a worker's process: the garbage collector, which would look through all that has been imported
again and again, for a sixth of the time, waits until the worker begins (`ray_grid.ClientAppActor`)."""

import gc

gc.disable()
