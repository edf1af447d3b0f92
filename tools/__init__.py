"""The set-up of this repository: standard library only, so that it runs before anything is installed."""
