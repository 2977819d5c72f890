"""Ways from a device to a service, and the names they are found by."""
