"""The mathematics that devices and servers share: numpy and torch only, no network, no files."""
