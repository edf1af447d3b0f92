"""What ``pulsartasks beat`` does: it sends what the schedule says, and moves what is due to where it runs."""
