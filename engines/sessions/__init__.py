"""The sessions: one file for each library, which is imported only when a session is opened, and the registry of runtimes."""
