"""Kills at random while documents come and go: `make chaos`, and a short run among the tests."""
