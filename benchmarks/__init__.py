"""What pulsartasks costs on this machine, beside the bare Pulsar client in the same run: ratios count, not figures."""
