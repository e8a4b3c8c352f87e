"""Physical removal: which channels of a network go together, which of them nothing depends on, and the cut itself."""
