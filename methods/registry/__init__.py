"""Names of methods: registration, spelling, options, plug-ins, and the hash of their source code."""
