"""What is shipped, built and looked at as whoever installs it would."""
