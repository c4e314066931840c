"""Every compiled loop: arrays and scalars in, arrays out; no validation, no Python objects."""
