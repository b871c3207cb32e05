"""The runtimes: one file for each library, which imports it only when such a runtime is opened."""
