"""Runs and devices, configured: TOML files that come with the package (shared.settings.bundled_config)."""
