"""Alembic scripts; see nubila.core.migrate."""
