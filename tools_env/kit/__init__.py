"""What an author of tools and environments works with: a skeleton, and a check of what they keep to."""
