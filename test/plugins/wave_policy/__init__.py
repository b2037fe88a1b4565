"""A policy family from another package, for test_policy_families.py."""
