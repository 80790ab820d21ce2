"""From files to what the networks are trained and run on; knows no network."""
