"""BabbleBox's chat: the web app, the workers that write to its threads, and the relay of its outbox."""
