"""Checks that every criterion, training and granularity must pass, ours and those of plug-ins."""
