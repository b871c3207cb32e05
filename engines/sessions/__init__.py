"""The sessions: one file for each library, which imports it only when a session is opened, and the registry of them all."""
