"""From a scan and its prompts to a mask."""
