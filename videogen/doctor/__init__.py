"""Say what is in a folder of videos, what is wrong with it, and what training will make of it; write a mended copy."""
