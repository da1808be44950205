"""What an author of rewards works with: a skeleton, a conformance check and a look at the distribution."""
