"""What runs on a device: the small model, routing, policies, caches and the uplink."""
