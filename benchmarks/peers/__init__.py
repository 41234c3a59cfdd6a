"""One file a peer; each says what exactly it runs."""
