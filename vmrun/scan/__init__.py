"""What an image contains, what is known to be wrong with it, and the verdict."""
