"""The command line; installed as `landscape_cli`."""
