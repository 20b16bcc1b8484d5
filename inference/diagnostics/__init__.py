"""Whether to believe a posterior: draws for ArviZ, and checks with verdicts."""
