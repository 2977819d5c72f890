"""The wiring of FedHLM: settings, data, apps, runs and the command line."""
