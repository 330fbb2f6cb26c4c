"""The command line: options, messages, progress, exit codes. Nothing else prints."""
