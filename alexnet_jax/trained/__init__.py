"""A trained net at work: opened with its preprocessing, run on pictures, its answers drawn."""
