"""What stages check in their inputs, read from them and carry on to outputs."""
