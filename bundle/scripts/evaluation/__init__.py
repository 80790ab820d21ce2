"""What a network finds, rated, tabled, drawn and written."""
