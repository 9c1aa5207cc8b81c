"""What the storages in SQL databases share: adapters/sqlite.py, adapters/postgres.py."""
