"""One TOML file per class of hardware (shared.profiles.load_profile)."""
