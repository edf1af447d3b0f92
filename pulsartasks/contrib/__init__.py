"""What goes well with tasks: a store for big payloads, and an outbox in the application's own database."""
