"""Whether hybrid decoding pays for a pair, its texts, a link and prices: `fedhlm estimate`."""
