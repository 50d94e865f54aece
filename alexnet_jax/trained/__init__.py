"""Uses a trained net: opens it with its preprocessing, runs it on pictures, draws the results."""
