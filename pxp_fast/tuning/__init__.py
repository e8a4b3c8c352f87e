"""The search for the composite that prunes best: its space, objective, caches and storage; see :mod:`pxp_fast.tune`."""
