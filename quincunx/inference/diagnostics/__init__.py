"""What can be said of draws."""
