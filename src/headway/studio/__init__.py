"""The studio: a local web app over trained runs and fresh models, loopback only."""
