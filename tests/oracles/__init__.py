"""Independent truths that the tests compare with: slow, obvious, and sharing no code with the package."""
