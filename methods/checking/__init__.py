"""The contract that every registered entry is tested for."""
