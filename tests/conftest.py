"""Fixtures that every test may use."""

from __future__ import annotations

pytest_plugins = ["workers", "servers", "boards", "sockets", "whole_path"]
